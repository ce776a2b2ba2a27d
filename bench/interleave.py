"""Contenders by turns inside one short unit between two probes, and medians over the units of one placement.

A unit takes some tens of milliseconds, less than the virtual CPUs usually stay where they are; every ratio is taken
inside a unit, so a move between units cannot enter it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from torch_cpullm.machine.probe import probe
from torch_cpullm.ops.probe import read_bandwidth

Call = Callable[[], object]
WHOLE_CORES = ("one complex", "separate complexes", "one thread")
LAPS = 3
BURST_S, MOST_IN_BURST = 2e-3, 8
"""A lap is a burst of calls, and what counts is their median: the first finds its code and its threads cold, which a
single layer of a model does as well, but the next ones of the same model do not."""


@dataclass
class Case:
    """One unit's contenders, and what was measured so far.

    Attributes:
        calls: what to time, by name.
        measures: functions that return a figure of their own (a bandwidth, a peak), by name.
        memory: contiguous tensors that the calls read, one after the other. They are read through before each unit:
            memory that was left alone for a second answers at half its speed on a virtual machine, the first time.
        units: for each unit its placement and the median of each contender (seconds) and measure.
    """

    calls: dict[str, Call]
    measures: dict[str, Callable[[], float]]
    memory: Sequence[torch.Tensor] = ()
    units: list[tuple[str, dict[str, float]]] = field(default_factory=list)


def run_unit(case: Case, order: random.Random) -> None:
    """Run every contender of `case` a few times in random order, between two probes."""
    seen: dict[str, list[float]] = {name: [] for name in (*case.calls, *case.measures)}
    for tensor in case.memory:
        read_bandwidth(tensor.view(-1).view(torch.float32), torch.get_num_threads(), 1)
    before = probe(25)
    for _ in range(LAPS):
        for name in order.sample(sorted(seen), len(seen)):
            if name in case.measures:
                seen[name].append(case.measures[name]())
                continue
            seen[name].append(_burst(case.calls[name]))
    after = probe(25)
    placement = before.placement if before.placement == after.placement else "moved"
    case.units.append((placement, {name: statistics.median(values) for name, values in seen.items()}))


def _burst(call: Call) -> float:
    spent: list[float] = []
    while len(spent) < 1 or (sum(spent) < BURST_S and len(spent) < MOST_IN_BURST):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def main_placement(cases: list[Case]) -> str:
    """The placement with whole cores that most units had; the most frequent one where there is none."""
    seen = [placement for case in cases for placement, _ in case.units if placement != "moved"]
    whole = [placement for placement in seen if placement in WHOLE_CORES]
    return statistics.mode(whole or seen or ["moved"])


def median_of(case: Case, placement: str, figure: Callable[[dict[str, float]], float]) -> float:
    """Median over the case's units in `placement` (all of them where it has none) of `figure(unit)`."""
    here = [unit for where, unit in case.units if where == placement] or [unit for _, unit in case.units]
    return statistics.median(figure(unit) for unit in here)
