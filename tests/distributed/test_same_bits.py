"""Ranks with other instructions or threads than each other, and ranks that calibrate: the bits they all would have."""

import pytest
import torch

from tests.distributed import same_bits_ranks
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.ops import introspect
from torch_cpullm.ops.linear import slice_packed
from torch_cpullm.testing.ranks import run_ranks

LEVELS = ("scalar", "avx2", "avx512", "amx")
SAME_EVERYWHERE = ("keep", "int8", "int4")  # bf16 is the exception: vdpbf16ps and AMX add pairs before they round


@pytest.fixture(scope="module")
def alike():
    """Ranks that have the same of everything."""
    return run_ranks(same_bits_ranks.as_told, 2, None, None)


def assert_same(found, alike, names):
    for name in names:
        for of_rank in found:
            assert torch.equal(of_rank[name]["logits"], alike[0][name]["logits"]), name
            assert torch.equal(of_rank[name]["tokens"], alike[0][name]["tokens"]), name


@pytest.mark.parametrize("levels", [("scalar", "highest"), ("highest", "avx2")])
def test_ranks_of_different_isa_levels(levels, alike):
    here = introspect.isa_level()
    levels = [here if level == "highest" else level for level in levels]
    if max(map(LEVELS.index, levels)) > LEVELS.index(here):
        pytest.skip(f"{' and '.join(levels)} on a machine, or in a run, of {here}")
    found = run_ranks(same_bits_ranks.as_told, 2, levels, None)
    assert [of_rank["level"] for of_rank in found] == levels
    assert_same(found, alike, SAME_EVERYWHERE)
    assert_same(found, found, ["bf16"])  # of both ranks: what is rounded otherwise on one reaches the other as it is


def test_ranks_with_different_numbers_of_threads(alike):
    found = run_ranks(same_bits_ranks.as_told, 2, None, [1, 3])
    assert [of_rank["threads"] for of_rank in found] == [1, 3]
    assert_same(found, alike, same_bits_ranks.CHOICES)


@pytest.mark.parametrize("choices", [{}, {"weights": "int4", "group_size": 64}, {"activations": "bf16"}])
def test_calibrated_ranks_have_the_codes_of_one(choices):
    whole = same_bits_ranks.calibrated_by(choices)
    linears = {path: module.packed for path, module in whole.named_modules() if isinstance(module, PackedLinear)}
    expected = same_bits_ranks.results_of(whole)["tokens"]
    for found in run_ranks(same_bits_ranks.calibrated, 2, choices):
        assert not [note for note in found["notes"] if "calibration texts were not used" in note]
        assert set(found["parts"]) == set(linears)
        for path, (packed, spans) in found["parts"].items():
            assert spans is not None, path
            assert torch.equal(packed, slice_packed(linears[path], *spans)), path
        assert torch.equal(found["tokens"], expected)
