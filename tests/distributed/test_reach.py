"""Which transport carries which messages, by the times that were taken."""

import pytest
import torch

from tests.distributed import reach_ranks
from torch_cpullm.distributed.reach import SIZES, choose
from torch_cpullm.testing.ranks import run_ranks


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({"shm": [4, 20, 90, 800], "ccl": [13, 35, 300, 2500]}, [("shm", None)]),
        ({"shm": [4, 20, 90, 800], "ccl": [13, 35, 60, 300]}, [("shm", 185363), ("ccl", None)]),
        ({"shm": [4, 20, 90, 800], "ccl": [13, 35, 80, 700]}, [("shm", None)]),  # too little to be worth a change
        ({"shm": [9, 40, 100, 400], "ccl": [3, 40, 300, 900]}, [("ccl", 185363), ("shm", None)]),
        ({"gloo": [200, 250, 600, 5000]}, [("gloo", None)]),
        ({"shm": [4, 20, 90, 800], "ccl": [3.5, 17, 85, 700]}, [("shm", None)]),  # the first one, unless it is slower
    ],
)
def test_choice(times, chosen):
    found = choose(times)
    assert [name for name, _ in found] == [name for name, _ in chosen]
    assert [limit for _, limit in found[:-1]] == [limit for _, limit in chosen[:-1]]
    assert SIZES == (8 << 10, 64 << 10, 512 << 10, 4 << 20)


def test_a_group_of_two_ways():
    """Small messages by one, large ones by the other; both count; neither outlives the last number."""
    for rank, found in enumerate(run_ranks(reach_ranks.two_ways, 2)):
        assert found["info"] == ["shm up to 1024 bytes, gloo", rank, 2]
        assert found["sums"] == [3.0, 3.0]
        assert found["counts"] == [1, 1]
        assert all(text.startswith(("groups: ", "limits: ", "group: ")) for text in found["refused"])
        assert len(found["refused"]) == 6


def test_ranks_agree_or_are_told():
    texts = run_ranks(reach_ranks.agreement, 2)
    assert texts[0] == texts[1]
    same, other_value, other_shape, other_dtype, more = texts[0]
    assert same == ""
    assert other_value == "work: expected the same color on all ranks, got another on rank 1 than on rank 0"
    assert "same ids" in other_shape
    assert "same ids" in other_dtype
    assert "other names" in more


def test_the_second_rank_may_be_late():
    for waited in run_ranks(reach_ranks.late, 2):
        assert torch.isfinite(torch.tensor(waited))
