"""Where two virtual CPUs are at this moment, and the limits that go with it.

On a cloud machine the placement changes every few seconds to minutes, unseen by lscpu. So measurements are taken
between two probes of some fifty milliseconds, and those at unlike placements are never compared.
"""

from __future__ import annotations

import functools
import itertools
import mmap
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch

from torch_cpullm.machine.container import memory_limit_bytes
from torch_cpullm.machine.topology import read_topology
from torch_cpullm.ops import probe as ops

Placement = Literal["separate complexes", "one complex", "SMT siblings", "one thread"]

# Both threads on one core share its multipliers (1.0 of one thread's rate); on two cores they have twice as many.
_SIBLINGS_BELOW = 1.5
# A line crosses a complex in 50 to 100 ns and back; between complexes it takes several hundred.
_COMPLEXES_ABOVE_S = 250e-9


@dataclass(frozen=True)
class Probe:
    """One look at the machine.

    Attributes:
        placement: where the two threads are.
        scaling: f32 rate of two threads over one's.
        round_trip_s: a cache line to the other thread and back, seconds.
        read_bandwidth: bytes per second, all threads.
    """

    placement: Placement
    scaling: float
    round_trip_s: float
    read_bandwidth: float


@dataclass(frozen=True)
class Roofline:
    """The limits of `threads` threads: bytes per second read, operations per second (0: no such instruction).

    f32, bf16 and int8 are those of vector instructions, vdpbf16ps and vpdpbusd among them.
    """

    threads: int
    read_bandwidth: float
    f32: float
    bf16: float
    int8: float
    amx_bf16: float
    amx_int8: float


_buffer: list[torch.Tensor] = []
_turn = itertools.count()


@functools.cache
def cold_bytes() -> int:
    """Bytes no last-level cache holds: 128 MiB, or a quarter more than a larger cache, at most an eighth of memory."""
    return max(128 << 20, min(read_topology().caches[2] * 5 // 4, memory_limit_bytes() // 8))


def _large_buffer() -> torch.Tensor:
    """Floats on huge pages, as packed weights lie."""
    if not _buffer:
        # Private: pages of a shared mapping are small ones, and read 10 % slower.
        memory = mmap.mmap(-1, cold_bytes(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                memory.madvise(mmap.MADV_HUGEPAGE)
        _buffer.append(torch.frombuffer(memory, dtype=torch.float32).fill_(0.0))
    return _buffer[0]


def cold_read(threads: int, size: int) -> float:
    """Bytes per second of one pass over `size` bytes that no cache holds."""
    buffer = _large_buffer()
    count = min(max(size // 4, 4096), buffer.numel() // 4)
    first = next(_turn) % (buffer.numel() // count) * count
    return ops.read_bandwidth(buffer[first : first + count], threads, 1)


def classify(scaling: float, round_trip_s: float) -> Placement:
    """Name the placement two measurements speak of."""
    if round_trip_s == 0.0:
        return "one thread"
    if scaling < _SIBLINGS_BELOW:
        return "SMT siblings"
    return "separate complexes" if round_trip_s > _COMPLEXES_ABOVE_S else "one complex"


def probe(milliseconds: int = 50) -> Probe:
    """Measure for about `milliseconds`: instruction rate of two threads against one, round trip, read bandwidth."""
    if milliseconds < 5:
        raise ValueError(f"milliseconds: expected at least 5, got {milliseconds}")
    each = max(1, milliseconds // 5)
    alone, both = ops.peak("f32", 1, each), ops.peak("f32", 2, each)
    trip = ops.round_trip(200)
    bandwidth = ops.read_bandwidth(_large_buffer(), torch.get_num_threads(), max(1, milliseconds // 10))
    return Probe(classify(both / alone, trip), both / alone, trip, bandwidth)


def roofline(threads: int | None = None, milliseconds: int = 40) -> Roofline:
    """Measure the limits of `threads` threads (default: torch's)."""
    team = torch.get_num_threads() if threads is None else threads
    return Roofline(
        threads=team,
        read_bandwidth=ops.read_bandwidth(_large_buffer(), team, 5),
        f32=ops.peak("f32", team, milliseconds),
        bf16=ops.peak("bf16", team, milliseconds),
        int8=ops.peak("int8", team, milliseconds),
        amx_bf16=ops.peak("amx bf16", team, milliseconds),
        amx_int8=ops.peak("amx int8", team, milliseconds),
    )
