"""One operator against its rivals at one size, fairly: by turns, and with weights that come from memory.

Between two rounds of pytest-benchmark's, each rival runs once and is timed by the same clock, so a move of the virtual
CPUs hits all of them. Operands are rotated over more bytes than the last-level cache holds, since a model's are.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch_cpullm.machine.probe import cold_bytes, probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

Call = Callable[[], object]
WARM_UP = 3
SECONDS = 3.0  # for all contenders of a contest together
MIN_ROUNDS, MAX_ROUNDS = 15, 400


@dataclass(frozen=True)
class Work:
    """What one call does, whoever does it: operations for arithmetic, or bytes that it has to read."""

    operations: float = 0.0
    bytes_read: float = 0.0


def copies_beyond_cache(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Clone `tensor` as often as it takes to fill more than the last-level cache, at least twice."""
    return [tensor.clone() for _ in range(max(2, -(-cold_bytes() // tensor.nbytes)))]


def rotated(function: Callable[[Any], object], operands: Sequence[Any]) -> Call:
    """Call `function` with the next of `operands` each time."""
    turn = itertools.cycle(operands)
    return lambda: function(next(turn))


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def hold(benchmark: Any, ours: Call, rivals: dict[str, Call], work: Work) -> None:
    """Run the contest and leave the rivals' medians, the ratio and the placement of the vCPUs in `extra_info`."""
    for _ in range(WARM_UP):
        one_round = sum(_seconds(call) for call in (ours, *rivals.values()))
    times: dict[str, list[float]] = {name: [] for name in rivals}

    def rivals_run() -> None:
        for name, call in rivals.items():
            times[name].append(_seconds(call))

    before = probe()
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(SECONDS / one_round)))
    benchmark.pedantic(ours, setup=rivals_run, rounds=rounds)
    after = probe()
    benchmark.extra_info.update(
        rivals_s={name: statistics.median(series) for name, series in times.items()},
        operations=work.operations,
        bytes_read=work.bytes_read,
        placement=sorted({before.placement, after.placement}),
    )
