"""From laps to figures: tokens per second, times per token, and shares of what the machine could do."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch_cpullm.benchmark.race import Lap, Work, main_placement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_cpullm.machine.probe import Roofline

_SCALES = 17 / 16  # bytes of an INT8 cache to those of its codes: a scale of 4 bytes for 64 channels


@dataclass(frozen=True)
class Sizes:
    """What a model's figures are counted by.

    Attributes:
        products: weights that each token is multiplied with, the head apart.
        attention: multiplications and additions of attention for each token and token it sees, all layers.
        kv_elements: of each token in the cache.
        idle_table: elements of a table of embeddings that is no head: a token reads one row of it.
        head: weights of the head.
    """

    products: int
    attention: int
    kv_elements: int
    idle_table: int
    head: int

    def prefill_operations(self, work: Work) -> float:
        """Operations of one lap; of the head, one row for each sequence."""
        seen = work.tokens * work.depth + work.tokens * (work.tokens + 1) / 2
        return work.batch * (2.0 * self.products * work.tokens + self.attention * seen + 2.0 * self.head)


@dataclass(frozen=True)
class Entry:
    """What is known of a contender before it runs.

    Attributes:
        bits: of a weight.
        kv_bits: of an element of the cache.
        weight_bytes: in memory.
        load_s: seconds to load it.
        peak_bytes: the most memory that its process had.
    """

    bits: int
    kv_bits: int
    weight_bytes: int
    load_s: float
    peak_bytes: int

    def decode_bytes(self, sizes: Sizes, work: Work) -> float:
        """Bytes that one step has to read: weights once, and the cache of each sequence."""
        cached = sizes.kv_elements * self.kv_bits / 8 * (_SCALES if self.kv_bits == 8 else 1.0)
        middle = work.depth + work.tokens / 2
        return self.weight_bytes - sizes.idle_table * self.bits / 8 + work.batch * middle * cached


@dataclass(frozen=True)
class Standing:
    """One contender at one kind of work, in the placement that most laps had.

    Attributes:
        laps: that counted; 0 where it had none in that placement, and all of its laps were taken.
        tokens_s: tokens per second, all sequences together: the median of the laps.
        p50_s: from token to token (decode) or to the first token (prefill), over all laps.
        p90_s: the same.
        p99_s: the same.
        share: of the read bandwidth beside the laps (decode), or of the machine's peak (prefill).
    """

    contender: str
    work: Work
    laps: int
    tokens_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    share: float


def standings(laps: Sequence[Lap], entries: dict[str, Entry], sizes: Sizes, roofline: Roofline) -> list[Standing]:
    """Every contender at every kind of work, in the order in which they were run."""
    found = []
    for work in dict.fromkeys(lap.work for lap in laps):
        here = [lap for lap in laps if lap.work == work]
        place = main_placement(here)
        for name, entry in entries.items():
            own = [lap for lap in here if lap.contender == name]
            counted = [lap for lap in own if lap.placement == place]
            if own:
                figures = _standing(name, work, counted or own, entry, sizes, roofline)
                found.append(replace(figures, laps=len(counted)))
    return found


def _standing(name: str, work: Work, laps: list[Lap], entry: Entry, sizes: Sizes, roofline: Roofline) -> Standing:
    medians = [statistics.median(lap.seconds) for lap in laps]
    every = sorted(second for lap in laps for second in lap.seconds)
    step = statistics.median(medians)
    if work.kind == "decode":
        moved = entry.decode_bytes(sizes, work)
        share = statistics.median(moved / m / lap.read_bandwidth for m, lap in zip(medians, laps, strict=True))
        rate = work.batch / step
    else:
        integer, floating = max(roofline.int8, roofline.amx_int8), max(roofline.bf16, roofline.amx_bf16, roofline.f32)
        share = sizes.prefill_operations(work) / step / (integer if entry.bits <= 8 and integer else floating)
        rate = work.batch * work.tokens / step
    p50, p90, p99 = (_quantile(every, q) for q in (0.5, 0.9, 0.99))
    return Standing(name, work, len(laps), rate, p50, p90, p99, share)


def _quantile(ordered: list[float], q: float) -> float:
    """The smallest value that a share `q` of all does not exceed."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
