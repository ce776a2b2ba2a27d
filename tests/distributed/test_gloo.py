"""Collectives over gloo: their bits, and what happens when a rank is lost."""

import pytest

from tests.distributed import library_ranks
from torch_cpullm.testing.ranks import run_ranks


@pytest.mark.parametrize("size", [2, 4])
def test_every_operation_and_random_ones(size):
    assert run_ranks(library_ranks.all_that_works, size, "gloo") == [[]] * size


def test_another_shape_is_told():
    kinds = [kind for together in library_ranks.KINDS for kind in together]
    for texts in run_ranks(library_ranks.another_tensor, 2, "gloo", kinds):
        for first, then in texts.values():
            assert "asked for another shape" in first
            assert then == first


@pytest.mark.parametrize(("how", "size"), [("killed", 3), ("raised", 2), ("stopped", 2)])
def test_survivors_are_told_of_a_lost_rank(how, size):
    *survivors, _ = run_ranks(library_ranks.lost, size, "gloo", how, lost=(size - 1,))
    for text, seconds in survivors:
        assert text.startswith("all_reduce of 5000 float32: ")
        assert f"waited 2 s for rank {size - 1}" in text if how == "stopped" else f"rank {size - 1}" in text
        assert seconds < library_ranks.PATIENCE_S  # told, and not left to wait
