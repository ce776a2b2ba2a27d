"""Collectives between the ranks of a group, and the groups of one host's shared memory. Groups go by number.

All ranks call the same functions in the same order, one thread of each at a time.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

import torch
from torch.distributed import DistBackendError, DistError

from torch_cpullm.errors import CollectiveError
from torch_cpullm.ops.library import fake, kernels

PART_BYTES = 256 << 20
"""What one rank can hand over at once; addresses, not memory. Longer tensors go in pieces."""


class collective:
    """Around whatever may wait for other ranks: its errors become `CollectiveError`, or what Ctrl-C does.

    The operators notice Ctrl-C and forget it, so the signal is raised once more: Python's own handler raises
    KeyboardInterrupt, and one that the user has installed does what it does.

    Raises:
        CollectiveError: another rank is gone, late, or asked for something else; or Ctrl-C has a handler that returned.
    """

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not isinstance(error, DistError):
            return
        words = str(error).split("\nException raised from")[0]
        if not isinstance(error, DistBackendError):
            signal.raise_signal(signal.SIGINT)
        raise CollectiveError(words) from None


class GroupInfo(NamedTuple):
    """What an open group is.

    Attributes:
        transport: how its ranks reach each other: "shm", "ccl" or "gloo"; of several "shm up to 262144 bytes, ccl".
        rank: which one this is.
        size: how many there are.
        collectives: what they have done together so far.
    """

    transport: str
    rank: int
    size: int
    collectives: int


class ShmAddress(NamedTuple):
    """Where the other ranks of a host find the segment: a descriptor of rank 0's process; the token is a check."""

    pid: int
    descriptor: int
    token: int


def all_reduce_(x: torch.Tensor, group: int) -> None:
    """Replace x [...] by the sum of all ranks' x: in float, in the order of ranks, rounded once; the same bits on all.

    Args:
        x: contiguous, float32, bfloat16 or float16; the same shape on all ranks.
        group: number of an open group.
    """
    with collective():
        kernels.all_reduce_(x, group)


def broadcast_(x: torch.Tensor, root: int, group: int) -> None:
    """Replace x [...] by that of rank `root`. Contiguous, of any dtype, the same size on all ranks."""
    with collective():
        kernels.broadcast_(x, root, group)


def all_gather(x: torch.Tensor, group: int) -> torch.Tensor:
    """X [...] of all ranks, in their order: [size, ...]. Of any dtype, the same size on all ranks."""
    with collective():
        out: torch.Tensor = kernels.all_gather(x, group)
    return out


def barrier(group: int, timeout_s: float | None = None) -> None:
    """Return when all ranks have come here; `timeout_s` is what this one waits, None: as for any other collective."""
    with collective():
        kernels.barrier(group, timeout_s)


def route_groups(groups: Sequence[int], limits: Sequence[int]) -> int:
    """Make one group of several: a part of up to limits[i] bytes goes by groups[i], any other by the last.

    They stay open while the new one is, whatever becomes of their own numbers.

    Args:
        groups: of the same ranks, single ones.
        limits: ascending, one less than groups.

    Raises:
        ValueError: groups of other ranks, or limits beyond what they hand over at once.
    """
    return int(kernels.route_groups(list(groups), list(limits)))


def close_group(group: int) -> None:
    """Let go of a group. Ranks that still wait for this one are told so; a number that is not open is no error."""
    kernels.close_group(group)


def group_info(group: int) -> GroupInfo:
    """What an open group is."""
    with collective():
        return GroupInfo(*kernels.group_info(group))


def shm_create(size: int, timeout_s: float, part_bytes: int = PART_BYTES) -> tuple[int, ShmAddress]:
    """Open a group of `size` ranks on this host, as its rank 0.

    Args:
        size: ranks, at most 64.
        timeout_s: what any collective of the group waits for another rank.
        part_bytes: what one rank can hand over at once.

    Returns:
        The group's number, and what the other ranks call `shm_open` with.
    """
    with collective():
        group, *address = kernels.shm_create(size, part_bytes, timeout_s)
    return group, ShmAddress(*address)


def shm_open(address: ShmAddress, rank: int, timeout_s: float) -> int:
    """Open rank 0's group as another rank; return its number in this process.

    Raises:
        CollectiveError: this process cannot reach rank 0's memory, or the seat is taken; the text says why.
    """
    with collective():
        return int(kernels.shm_open(*address, rank, timeout_s))


@fake("all_reduce_")
def _(x: torch.Tensor, group: int) -> None: ...


@fake("broadcast_")
def _(x: torch.Tensor, root: int, group: int) -> None: ...


@fake("all_gather")
def _(x: torch.Tensor, group: int) -> torch.Tensor:
    return x.new_empty((group_info(group).size, *x.shape))
