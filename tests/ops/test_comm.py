"""Collectives over shared memory: their bits, and what happens when a rank is lost."""

import os
import re
from pathlib import Path

import pytest
import torch

from tests.ops import comm_ranks
from torch_cpullm.errors import CollectiveError
from torch_cpullm.ops import comm, rowwise
from torch_cpullm.reference.comm import summed
from torch_cpullm.testing.guard import guarded
from torch_cpullm.testing.ranks import run_ranks

FLOATS = comm_ranks.FLOATS


@pytest.fixture
def alone():
    """A group of one rank."""
    group, _ = comm.shm_create(1, 60.0)
    yield group
    comm.close_group(group)


@pytest.mark.parametrize("size", [2, 4])
def test_every_operation_and_random_ones(size):
    assert run_ranks(comm_ranks.all_that_works, size) == [[]] * size


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ten_thousand_random_collectives(size):
    assert run_ranks(comm_ranks.random_collectives, size, 10_000, timeout_s=1200.0) == [[]] * size


def test_another_shape_is_named():
    first, odd = run_ranks(comm_ranks.another_tensor, 2)
    for kind, mine, theirs in (
        ("shape", "all_reduce of 4 float32", "all_reduce of 8 float32"),
        ("dtype", "all_reduce of 4 float32", "all_reduce of 4 bfloat16"),
        ("operation", "all_reduce of 4 float32", "barrier"),
        ("root", "broadcast of 16 bytes from rank 0", "broadcast of 16 bytes from rank 1"),
    ):
        texts = (
            f"{mine}: rank 1 asked for another shape, {theirs}",
            f"{theirs}: rank 0 asked for another shape, {mine}",
        )
        assert first[kind][0].startswith(texts)
        assert odd[kind][0].startswith(texts[1]) or texts[0] in odd[kind][0]
        for then in (first[kind][1], odd[kind][1]):
            assert texts[0] in then or texts[1] in then


@pytest.mark.parametrize(
    ("how", "size", "words"),
    [
        ("killed", 3, "rank 2 has ended"),
        ("raised", 2, "rank 1 has ended"),
        ("closed", 2, "rank 1 has closed its group"),
        ("stopped", 2, "waited 2 s for rank 1; is it stopped"),
    ],
)
def test_survivors_are_told_of_a_lost_rank(how, size, words):
    *survivors, _ = run_ranks(comm_ranks.lost, size, how, lost=() if how == "closed" else (size - 1,))
    for text, seconds in survivors:
        assert text.startswith("all_reduce of 5000 float32: ")
        assert words in text
        assert seconds < comm_ranks.PATIENCE_S  # told, and not left to wait


def test_who_has_done_its_part_may_go():
    first, second = run_ranks(comm_ranks.ends_after_its_part, 2)
    assert torch.equal(first, torch.full((3,), 1.0))
    assert torch.equal(second, first)


def test_ctrl_c_in_a_collective():
    first, second = run_ranks(comm_ranks.interrupted, 2)
    assert first == ["KeyboardInterrupt", "handler", "barrier: interrupted"]
    assert second == ["barrier: rank 0 failed in barrier: interrupted"] * 2


def test_memory_out_of_reach_is_said_on_all_ranks():
    for text in run_ranks(comm_ranks.unreachable, 2):
        assert re.match(
            r"no shared memory between the ranks: rank 1: .*cannot open /proc/\d+/fd/987654 of rank 0", text
        )


def test_a_forged_address_is_refused():
    group, address = comm.shm_create(2, 60.0)
    for wrong, words in (
        (address._replace(token=address.token ^ 1), "is not what rank 0 made"),
        (address._replace(descriptor=987654), "No such file"),
        (address._replace(pid=2**30), "No such file"),
    ):
        with pytest.raises(CollectiveError, match=words):
            comm.shm_open(wrong, 1, 60.0)
    with (
        Path("/dev/null").open("rb") as other,
        pytest.raises(CollectiveError, match="rank 0"),
    ):
        comm.shm_open(address._replace(descriptor=other.fileno()), 1, 60.0)
    second = comm.shm_open(address, 1, 60.0)
    with pytest.raises(CollectiveError, match=f"rank 1 is process {os.getpid()} already"):
        comm.shm_open(address, 1, 60.0)
    comm.close_group(second)
    comm.close_group(group)


MISUSE = {
    "dtype": (lambda g: comm.all_reduce_(torch.zeros(3, dtype=torch.int32), g), TypeError, "x: expected float32"),
    "strides": (lambda g: comm.all_reduce_(torch.zeros(4, 3).T, g), ValueError, r"x: .*contiguous.*\.contiguous\(\)"),
    "broadcast strides": (lambda g: comm.broadcast_(torch.zeros(4, 3).T, 0, g), ValueError, "x: .*contiguous"),
    "gradient": (lambda g: comm.all_reduce_(torch.zeros(3, requires_grad=True), g), NotImplementedError, "x: .*grad"),
    "root": (lambda g: comm.broadcast_(torch.zeros(3), 1, g), ValueError, "root: expected a rank from 0 to 0, got 1"),
    "group": (lambda _: comm.all_reduce_(torch.zeros(3), 10**6), ValueError, "group: expected one that is open"),
    "group of a barrier": (lambda _: comm.barrier(-1), ValueError, "group: .*got -1"),
    "group of info": (lambda _: comm.group_info(0), ValueError, "group: .*got 0"),
    "meta": (lambda g: comm.all_reduce_(torch.zeros(3, device="meta"), g), RuntimeError, "x: .*on meta"),
    "no ranks": (lambda _: comm.shm_create(0, 60.0), ValueError, "size: expected 1 to 64 ranks, got 0"),
    "no time": (lambda _: comm.shm_create(1, 0.0), ValueError, "timeout_s: .*got 0"),
    "no bytes": (lambda _: comm.shm_create(1, 1.0, 0), ValueError, "part_bytes: .*got 0"),
    "parts, none": (lambda _: rowwise.sum_parts([], torch.zeros(3)), ValueError, "parts"),
    "parts' shapes": (lambda _: rowwise.sum_parts([torch.zeros(3), torch.zeros(4)]), ValueError, "parts: .*shape"),
    "parts' types": (lambda _: rowwise.sum_parts([torch.zeros(3), torch.zeros(3).half()]), TypeError, "parts"),
    "residual": (lambda _: rowwise.sum_parts([torch.zeros(3)], torch.zeros(4)), ValueError, "residual: .*shape"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_named(case, alone):
    call, error, words = MISUSE[case]
    with pytest.raises(error, match=words):
        call(alone)


def test_one_rank_keeps_what_it_has(alone):
    x = torch.randn(1000).half()
    expected = x.clone()
    comm.all_reduce_(x, alone)
    comm.broadcast_(x, 0, alone)
    comm.barrier(alone)
    assert torch.equal(x, expected)
    assert torch.equal(comm.all_gather(x, alone), expected[None])


def test_a_closed_group_is_none():
    group, _ = comm.shm_create(1, 60.0)
    comm.close_group(group)
    comm.close_group(group)
    with pytest.raises(ValueError, match=f"group: expected one that is open, got {group}"):
        comm.barrier(group)


@pytest.mark.parametrize("width", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_sum_parts(width, count, dtype):
    parts = [guarded(comm_ranks.tensor_of(i, width, (3, width), dtype)) for i in range(count)]
    assert torch.equal(rowwise.sum_parts(parts), summed(parts))
    for other in FLOATS:
        residual = guarded(comm_ranks.tensor_of(9, width, (3, width), other))
        assert torch.equal(rowwise.sum_parts(parts, residual), summed(parts, residual))


def test_sum_parts_by_any_number_of_threads():
    parts = [comm_ranks.tensor_of(i, 0, (7, 333), torch.bfloat16) for i in range(4)]
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        assert torch.equal(rowwise.sum_parts(parts), summed(parts))


def test_sums_keep_nan_and_infinity():
    parts = [torch.tensor([float("inf"), float("inf"), float("nan"), -0.0, 65504.0]).half()] * 2
    parts[1] = torch.tensor([float("-inf"), 1.0, 1.0, -0.0, 65504.0]).half()
    got = rowwise.sum_parts(parts)
    assert got.isnan().tolist() == [True, False, True, False, False]
    assert got[1] == float("inf")
    assert got[4] == float("inf")
    assert torch.signbit(got[3])
