"""The same work for all contenders, repetition by repetition in turns, with a probe of the placement around each.

Each repetition begins with a few tokens that are not timed: memory that was left alone while the others had their turns
answers at half its speed on a virtual machine, the first times it is read again.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from torch_cpullm.benchmark.player import Player, PlayerError
from torch_cpullm.benchmark.steps import Advance, silent
from torch_cpullm.machine.probe import probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_cpullm.benchmark.engines.engine import Ids

WHOLE_CORES = ("one complex", "separate complexes", "one thread")
MOVED = "moved"
_MOST = 2  # times the repetitions asked for, where the placement changes
WARM_UP = 8
_PROBE_MS = 25


@dataclass(frozen=True)
class Work:
    """What is timed once.

    Attributes:
        kind: "prefill": `tokens` more, in one go. "decode": one token after the other.
        batch: sequences.
        depth: tokens that each holds before.
        tokens: of each sequence.
    """

    kind: Literal["prefill", "decode"]
    batch: int
    depth: int
    tokens: int

    @property
    def name(self) -> str:
        """As reports have it."""
        what = f"{self.kind} {self.tokens}" if self.kind == "prefill" else self.kind
        where = f" at depth {self.depth}" if self.depth or self.kind == "decode" else ""
        return what + where + (f", batch {self.batch}" if self.batch > 1 else "")


@dataclass(frozen=True)
class Lap:
    """One contender's turn.

    Attributes:
        seconds: of the prefill, or from token to token.
        placement: of the virtual CPUs before and after, or "moved".
        read_bandwidth: bytes per second, the mean of both probes.
    """

    contender: str
    work: Work
    seconds: list[float]
    placement: str
    read_bandwidth: float


@dataclass
class Race:
    """Contenders that are loaded, and the laps they have run.

    Attributes:
        players: by contender's name.
        vocabulary: tokens are drawn from it.
        fallen: those that have dropped out, and why.
    """

    players: dict[str, Player]
    vocabulary: int
    laps: list[Lap] = field(default_factory=list)
    fallen: dict[str, str] = field(default_factory=dict)
    _held: dict[str, tuple[int, int]] = field(default_factory=dict)

    def run(self, work: Work, repetitions: int, advance: Advance = silent) -> None:
        """Run `work` until each contender has `repetitions` laps in the placement that most laps had, or twice as many.

        Args:
            work: how much at which depth.
            repetitions: laps of each.
            advance: told the laps that are run.
        """
        run = 0
        for done in range(_MOST * repetitions):
            if done >= repetitions and self._enough(work, repetitions):
                return
            order = list(self.players) if done % 2 == 0 else list(self.players)[::-1]
            for name in order:
                try:
                    self.laps.append(self._lap(name, work))
                except PlayerError as error:
                    self.fallen[name] = str(error)
                    self.players.pop(name).close()
                run += 1
                advance(run, max(run, repetitions * len(self.players)))

    def _enough(self, work: Work, repetitions: int) -> bool:
        here = [lap for lap in self.laps if lap.work == work]
        place = main_placement(here)
        there = [lap.contender for lap in here if lap.placement == place]
        return all(there.count(name) >= repetitions for name in self.players)

    def _lap(self, name: str, work: Work) -> Lap:
        player = self.players[name]
        self._grow(name, work.batch, max(work.depth, 1))
        player.decode(WARM_UP)
        if work.kind == "decode" or work.depth:
            player.crop(max(work.depth, 1))
        else:
            player.reset(work.batch)
            self._held[name] = work.batch, 0
        before = probe(_PROBE_MS)
        if work.kind == "prefill":
            timed = player.extend(self._ids(work.batch, work.depth, work.tokens))
        else:
            timed = player.decode(work.tokens)
        after = probe(_PROBE_MS)
        if work.depth:
            player.crop(work.depth)
            self._held[name] = work.batch, work.depth
        else:
            self._held[name] = work.batch, -1  # something short, to be forgotten
        placement = before.placement if before.placement == after.placement else MOVED
        return Lap(name, work, timed.seconds, placement, (before.read_bandwidth + after.read_bandwidth) / 2)

    def _grow(self, name: str, batch: int, depth: int) -> None:
        """Let `batch` sequences hold `depth` tokens each; keeps those they hold already."""
        player, (held_batch, held) = self.players[name], self._held.get(name, (0, -1))
        if held_batch != batch or held < 0 or held > depth:
            player.reset(batch)
            held = 0
        if held < depth:
            player.extend(self._ids(batch, held, depth - held))
        self._held[name] = batch, depth

    def _ids(self, batch: int, start: int, count: int) -> Ids:
        """Tokens start .. start + count - 1 of texts that are random, and the same for all contenders."""
        texts = np.random.default_rng(20_240_704).integers(3, self.vocabulary, size=(start + count, batch))
        return np.ascontiguousarray(texts[start:].T)


def main_placement(laps: Sequence[Lap]) -> str:
    """The placement with whole cores that most laps had; the most frequent one where there is none."""
    seen = [lap.placement for lap in laps if lap.placement != MOVED]
    whole = [placement for placement in seen if placement in WHOLE_CORES]
    return statistics.mode(whole or seen or [MOVED])
