"""Models that ranks have all of, because none of their layers is fused: generate() is kept in step all the same."""

import torch

import torch_cpullm
from tests.distributed import replicated_ranks
from tests.distributed.model_ranks import KEPT
from torch_cpullm.testing.models import LEFT_ALONE, tiny_model
from torch_cpullm.testing.ranks import run_ranks


def test_ranks_that_share_nothing_keep_step(tmp_path):
    """Where no layer is fused: rank 0's random numbers, processors and criteria are everybody's all the same."""
    first, second = run_ranks(replicated_ranks.everything, 2, str(tmp_path))
    for name in replicated_ranks.FAMILIES:
        alone = replicated_ranks.tokens_of(torch_cpullm.optimize(tiny_model(*LEFT_ALONE[name]), **KEPT))
        for way, ids in alone.items():
            assert torch.equal(first[name][way], ids), f"{name}: {way}"
            assert torch.equal(second[name][way], ids), f"{name}: {way}, rank 1"
    for found in (first, second):
        for name in ("copied", "saved"):
            for way, ids in first["quantised"].items():
                assert torch.equal(found[name][way], ids), f"{name}: {way}"
        assert found["made"][0] == found["made"][1]  # a tied table goes on reading the bytes of its head
        assert "same argument 0" in found["prompts"]
        assert (found["left"], found["class"]) == ([], "OPTPreTrainedModel")
    assert first["heard"] == (16, 1)
    assert second["heard"] == (0, 0)
