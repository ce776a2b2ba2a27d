"""Models that ranks share: the tokens of one rank, by every transport; and what happens when one does not keep up."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import torch_cpullm
from tests.distributed import model_ranks
from tests.distributed.test_ccl import needs_oneccl
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.pretrained import CpuLlmConfig
from torch_cpullm.testing.models import WHOLE, bundled_model, bundled_tokenizer, tiny_model
from torch_cpullm.testing.ranks import run_ranks

TRANSPORTS = ["shm", "gloo", "auto", pytest.param("ccl", marks=needs_oneccl)]


@pytest.fixture(scope="module")
def alone():
    """What one rank gives: tokens, logits of the plain model, greedy tokens in INT8."""
    tokens = model_ranks.tokens_of(torch_cpullm.optimize(bundled_model(), **model_ranks.KEPT))
    fused = torch_cpullm.optimize(bundled_model(), sampler="fused", **model_ranks.KEPT)
    tokens["fused sampler"] = model_ranks.drawn_of(fused)
    with torch.no_grad():
        logits = bundled_model()(**model_ranks.batch()).logits
    int8 = torch_cpullm.optimize(bundled_model())
    return tokens, logits, int8.generate(**model_ranks.prompt(), do_sample=False, max_new_tokens=48)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_give_the_tokens_of_one(alone, size, transport):
    expected, logits, int8 = alone
    of_ranks = run_ranks(model_ranks.bundled, size, transport)
    counted = model_ranks.batch()["attention_mask"].bool()
    for rank, found in enumerate(of_ranks):
        assert transport in found["way"] or transport == "auto"
        for name, ids in found["tokens"].items():
            assert torch.equal(ids, expected[name]), f"rank {rank}: {name}"
        assert torch.equal(found["logits"], of_ranks[0]["logits"])
        torch.testing.assert_close(found["logits"][counted], logits[counted], atol=1e-4, rtol=0)
        assert torch.equal(found["int8"]["greedy"], int8)
        for name, ids in found["int8"].items():
            assert torch.equal(ids, of_ranks[0]["int8"][name]), f"rank {rank}: {name}"


@pytest.fixture(scope="module")
def families():
    return run_ranks(model_ranks.families, 2)


def test_ranks_of_every_family(families):
    first, second = families
    ids_BT = torch.arange(3, 27).view(2, 12)
    for name, (config, fields) in WHOLE.items():
        model = tiny_model(config, fields)
        with torch.no_grad():
            torch.testing.assert_close(first[name][0], model(ids_BT).logits, atol=1e-4, rtol=1e-4, msg=name)
        assert torch.equal(first[name][1], model.generate(ids_BT, max_new_tokens=16, do_sample=False)), name
        assert torch.equal(first[name][0], second[name][0])
        assert torch.equal(first[name][1], second[name][1])


def test_a_bfloat16_model_loses_little_by_sums_in_bfloat16(families):
    with torch.no_grad():
        exact = bundled_model()(**model_ranks.prompt()).logits
        alone = torch_cpullm.optimize(bundled_model(torch.bfloat16), weights="keep")(**model_ranks.prompt()).logits
    error, of_ranks = (torch.linalg.vector_norm(logits - exact) for logits in (alone, families[0]["bfloat16"][0]))
    assert 0 < of_ranks < 1.5 * error
    assert torch.equal(families[0]["bfloat16"][1], families[1]["bfloat16"][1])


def test_folders_are_loaded_in_parts(tmp_path):
    model, tokenizer = bundled_model(), bundled_tokenizer()
    model.save_pretrained(tmp_path / "checkpoint")
    quantised = AutoModelForCausalLM.from_pretrained(
        tmp_path / "checkpoint", dtype=torch.float32, quantization_config=CpuLlmConfig()
    )
    quantised.save_pretrained(tmp_path / "packed", max_shard_size="3MB")
    model = torch_cpullm.optimize(model)
    torch_cpullm.save(model, tmp_path / "saved", tokenizer)
    expected = model.generate(**model_ranks.prompt(), max_new_tokens=24, do_sample=False)
    whole = sum(m.packed.numel() for m in model.modules() if isinstance(m, PackedLinear))
    folders = (str(tmp_path / name) for name in ("saved", "checkpoint", "packed"))
    for found in run_ranks(model_ranks.loading, 2, *folders):
        for name, (tokens, linear, _, _, told) in found.items():
            assert torch.equal(tokens, expected), name
            assert linear < 0.52 * whole, name
            assert told == found["from_pretrained"][-1], name
        # Out of mapped files nothing is made but what stays: no whole weight was copied to be cut.
        made = {name: (made - linear, made - every) for name, (_, linear, every, made, _) in found.items()}
        assert made["load"][0] == made["copy"][1] == made["packed"][1] == 0
        assert made["from_pretrained"][1] > whole / 2


def test_one_rank_speaks_and_decides():
    first, second = run_ranks(model_ranks.one_rank_speaks, 2)
    length = model_ranks.prompt()["input_ids"].shape[1]
    assert first["heard"] == (length + 9, 1)
    assert second["heard"] == (0, 0)
    assert first["text"]
    assert not second["text"]
    for found in (first, second):
        assert found["stopped"] == found["stopped beams"] == length + 5
        assert "same inputs" in found["prompts"] or "same argument 0" in found["prompts"]
        assert "same max_new_tokens" in found["numbers"]
        assert "other names" in found["names"]
        assert "optimize: expected the same choices on all ranks, got another on rank 1" in found["choices"]
        assert "same weights" in found["weights"]
        assert torch.equal(found["after all that"], first["after all that"])


@pytest.mark.parametrize("transport", ["shm", pytest.param("ccl", marks=needs_oneccl)])
@pytest.mark.parametrize("fate", ["killed", "stopped", "raises"])
def test_a_rank_that_fails_in_generate_is_named(fate, transport):
    *others, _ = run_ranks(model_ranks.fail_in_generate, 2, transport, fate, lost=() if fate == "raises" else (1,))
    for text, seconds in others:
        assert "rank 1" in text
        assert "broadcast" in text or "all_reduce" in text
        assert seconds < model_ranks.SHORT_S + 2


@pytest.fixture(scope="module")
def parallel():
    return run_ranks(model_ranks.parallel, 2)


@pytest.mark.parametrize("name", model_ranks.PARALLEL)
def test_one_synchronisation_a_parallel_layer(name, parallel):
    """Whichever half the ranks share; none where they share neither. And three for each token, as above."""
    model = tiny_model(*model_ranks.PARALLEL[name])
    ids_BT = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        expected = model(ids_BT).logits
    tokens = model.generate(ids_BT, max_new_tokens=16, do_sample=False)
    for logits, ids, more in (found[name] for found in parallel):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(logits, parallel[0][name][0])
        assert torch.equal(ids, tokens)
        assert more == 3 + (0 if name == "neither" else model.config.num_hidden_layers)


def test_two_synchronisations_a_layer():
    """And three for each token: candidates, the choice, and whether to stop."""
    for more, layers in run_ranks(model_ranks.counted, 2):
        assert more == 2 * layers + 3
