"""From laps to a table: medians of each contender, for each place the vCPUs were in."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

MOVED = "moved"
"""The placement of a lap whose probes before and after differ; such laps are left out."""


@dataclass(frozen=True)
class Row:
    """One lap: who, where, tokens per second."""

    contender: str
    placement: str
    prefill: float
    decode: float


@dataclass(frozen=True)
class Medians:
    """Of one contender in one placement, tokens per second."""

    laps: int
    prefill: float
    decode: float


@dataclass(frozen=True)
class Group:
    """All contenders in one placement."""

    placement: str
    medians: dict[str, Medians]

    @property
    def weight(self) -> int:
        """Laps of the contender that has fewest."""
        return min(median.laps for median in self.medians.values())


def summarise(rows: list[Row]) -> list[Group]:
    """Group laps by placement, the one with most laps first; placements that lack a contender are left out."""
    contenders = list(dict.fromkeys(row.contender for row in rows))
    groups = []
    for placement in dict.fromkeys(row.placement for row in rows if row.placement != MOVED):
        here = [row for row in rows if row.placement == placement]
        laps = {name: [row for row in here if row.contender == name] for name in contenders}
        if all(laps.values()):
            groups.append(Group(placement, {name: _medians(made) for name, made in laps.items()}))
    return sorted(groups, key=lambda group: -group.weight)


def _medians(rows: list[Row]) -> Medians:
    return Medians(
        laps=len(rows),
        prefill=statistics.median(row.prefill for row in rows),
        decode=statistics.median(row.decode for row in rows),
    )
