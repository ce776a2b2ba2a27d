"""How the ranks reach each other: transports are opened, timed, and each size of message gets the fastest.

    ranks of one host       shared memory ("shm") and oneCCL ("ccl")
    ranks of several hosts  oneCCL
    where neither opens     gloo

TORCH_CPULLM_COMM asks for one of them; then nothing is timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.distributed.distributed_c10d import PrefixStore, Store

from torch_cpullm.config import Transport
from torch_cpullm.distributed.ccl import open_ccl
from torch_cpullm.distributed.gloo import open_gloo
from torch_cpullm.distributed.shm import open_shm
from torch_cpullm.errors import CollectiveError
from torch_cpullm.ops.comm import all_gather, all_reduce_, barrier, close_group, route_groups

Opener = Callable[[Store, int, int, float], int]
OPENERS: Mapping[str, Opener] = {"shm": open_shm, "ccl": open_ccl, "gloo": open_gloo}
"""(store, rank, size, timeout_s) -> number of a group; raises CollectiveError on all ranks where it does not open."""

SIZES = (8 << 10, 64 << 10, 512 << 10, 4 << 20)
"""Bytes that are timed: a row of a decode step to a prompt of some hundred tokens."""

_CALLS = (60, 40, 12, 6)
_LEAST_PATIENCE_S = 60.0  # ranks come to their first collective at different times
_SWITCH = 0.8  # what another transport has to take of the time to be worth a change


@dataclass(frozen=True)
class Reach:
    """An open group of all ranks.

    Attributes:
        group: its number.
        transport: what carries which messages: "shm", or "shm up to 180 KiB, ccl above".
        reason: why, and what would not open.
    """

    group: int
    transport: str
    reason: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.transport}: {self.reason}"


@dataclass(frozen=True)
class Rank:
    """One of the ranks, where it meets the others, and how long a collective waits for one of them."""

    rank: int
    size: int
    hosts: int
    store: Store
    timeout_s: float


def open_reach(rank: Rank, transport: Transport) -> Reach:
    """Open what `transport` asks for, or what "auto" finds best; all ranks call it.

    Raises:
        CollectiveError: on all ranks, when what was asked for does not open on one of them.
        ConfigError: no network interface leads to the other hosts.
    """
    if transport != "auto":
        return Reach(_open(transport, rank), transport, f"TORCH_CPULLM_COMM={transport}")
    faults: list[str] = []
    attempts = {name: _try_to_open(name, rank, faults) for name in (("shm", "ccl") if rank.hosts == 1 else ("ccl",))}
    opened = {name: group for name, group in attempts.items() if group}
    if len(opened) > 1:
        return _routed(opened)
    if not opened:
        opened["gloo"] = _open("gloo", rank)
    [(name, group)] = opened.items()
    barrier(group, max(rank.timeout_s, _LEAST_PATIENCE_S))
    return Reach(group, name, "; ".join(faults) or f"ranks of {rank.hosts} hosts")


def choose(seconds: Mapping[str, Sequence[float]]) -> list[tuple[str, int]]:
    """What carries which messages, by the time that SIZES take: (transport, bytes up to which), the last without end.

    The first one has them until another is clearly faster: transports that take nearly the same time would take turns,
    as the noise has it.
    """
    names = [next(iter(seconds))]
    for index in range(len(SIZES)):
        best = min(seconds, key=lambda name: seconds[name][index])
        pays = seconds[best][index] < _SWITCH * seconds[names[-1]][index]
        names.append(best if pays else names[-1])
    del names[0]
    chosen: list[tuple[str, int]] = []
    for index, name in enumerate(names):
        if not chosen:
            chosen.append((name, SIZES[index]))
        elif name != chosen[-1][0]:
            chosen[-1] = (chosen[-1][0], int((SIZES[index - 1] * SIZES[index]) ** 0.5))
            chosen.append((name, SIZES[index]))
    return chosen


def _open(name: str, rank: Rank) -> int:
    return OPENERS[name](PrefixStore(name, rank.store), rank.rank, rank.size, rank.timeout_s)


def _try_to_open(name: str, rank: Rank, faults: list[str]) -> int:
    """The group's number, or 0 and one more fault."""
    try:
        return _open(name, rank)
    except CollectiveError as fault:
        faults.append(str(fault))
        return 0


def _routed(opened: Mapping[str, int]) -> Reach:
    """A group of all that have opened, by the time they take: the slowest rank's, so that all choose the same."""
    own = torch.tensor(
        [[_seconds(group, *each) for each in zip(SIZES, _CALLS, strict=True)] for group in opened.values()]
    )
    slowest = all_gather(own, next(iter(opened.values()))).amax(0).tolist()
    chosen = choose(dict(zip(opened, slowest, strict=True)))
    limits = [limit for _, limit in chosen[:-1]]
    group = route_groups([opened[name] for name, _ in chosen], limits)
    for number in opened.values():
        close_group(number)
    upto = [f"{name} up to {limit >> 10} KiB" for name, limit in chosen[:-1]]
    transport = f"{', '.join(upto)}, {chosen[-1][0]} above" if upto else chosen[0][0]
    times = [f"{name} {_written(of_sizes)}" for name, of_sizes in zip(opened, slowest, strict=True)]
    sizes = "/".join(f"{size >> 10}" for size in SIZES)
    return Reach(group, transport, f"microseconds for {sizes} KiB: {', '.join(times)}")


def _seconds(group: int, size: int, calls: int) -> float:
    """The shortest time of an all_reduce_ of `size` bytes: what it takes when nobody else is on these CPUs."""
    x = torch.zeros(size // 4)
    least = math.inf
    barrier(group, _LEAST_PATIENCE_S)
    for _ in range(calls):
        begin = time.perf_counter()
        all_reduce_(x, group)
        least = min(least, time.perf_counter() - begin)
    return least


def _written(seconds: Sequence[float]) -> str:
    return "/".join(f"{1e6 * each:.0f}" for each in seconds)
