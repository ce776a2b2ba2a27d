"""One rank's part of a model: which heads, columns and rows, by numbers alone.

Tensor parallelism as in Megatron-LM (arXiv 1909.08053, section 3) and arXiv 2407.07304: what widens (q, k, v, gate, up,
the head) is cut by outputs, what narrows again (the attention's output, down) by the same inputs. Each rank then has a
term of a layer's output, and their sum is the whole.

    q, k, v   [heads, D]   rows of its heads         output  [D, heads]   inputs of its heads
    gate, up  [F, D]       rows of its columns       down    [D, F]       inputs of its columns
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import gcd

from torch_cpullm.detect.structure import AttentionStructure
from torch_cpullm.formats import INT8, WeightFormat

# Inputs that are quantised together, and weights whose scales share a step: cut here, a part computes what the whole
# does (csrc/layout/panel.h, kActivationGroup).
BLOCK = 256
# Outputs of one panel; half a panel would be multiplied as a whole one.
PANEL = 64


@dataclass(frozen=True)
class Shard:
    """Rank `rank` of `size`; the whole is the one part of a model among one rank."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank: expected one of 0 to {self.size - 1}, the size being {self.size}, got {self.rank}")


ALONE = Shard()


@dataclass(frozen=True)
class Span:
    """First <= i < stop."""

    first: int
    stop: int

    def __len__(self) -> int:
        """How many."""
        return self.stop - self.first

    def __str__(self) -> str:
        """3-5, both included."""
        return f"{self.first}-{self.stop - 1}"

    def times(self, unit: int, most: int | None = None) -> Span:
        """In units of 1 what is counted in units of `unit`; the last of `most` may be cut short."""
        first, stop = self.first * unit, self.stop * unit
        return Span(first, stop if most is None else min(stop, most))

    def after(self, first: int) -> Span:
        """As far behind `first` as this lies behind 0."""
        return Span(first + self.first, first + self.stop)


@dataclass(frozen=True)
class Heads:
    """The heads of a rank; its query heads read its KV heads, in equal numbers."""

    query: Span
    kv: Span


@dataclass(frozen=True)
class Share:
    """What a rank has of a layer: heads, and columns of the MLP. None: all of it, as every rank has."""

    heads: Heads | None = None
    columns: Span | None = None


EVERYTHING = Share()


@dataclass(frozen=True)
class Part:
    """What a rank has of a linear layer: ranges of outputs in order, a range of inputs, and whether the bias."""

    rows: tuple[Span, ...]
    inputs: Span
    bias: bool

    @property
    def outputs(self) -> int:
        """How many."""
        return sum(len(span) for span in self.rows)


def share_of(count: int, shard: Shard) -> Span:
    """Rank's share of `count` things in order; the first ranks get one more."""
    each, more = divmod(count, shard.size)
    first = shard.rank * each + min(shard.rank, more)
    return Span(first, first + each + (shard.rank < more))


def share_heads(attention: AttentionStructure, shard: Shard) -> Heads | None:
    """Whole KV heads with their query heads; with more ranks than KV heads, one of them and a part of its query heads.

    None where that does not come out even.
    """
    heads, kv_heads = attention.heads, attention.kv_heads
    each = heads // kv_heads
    if shard.size <= kv_heads:
        kv = share_of(kv_heads, shard)
        return Heads(kv.times(each), kv)
    ranks = shard.size // kv_heads  # that have the same KV head
    if shard.size % kv_heads or each < ranks:
        return None
    kv_head = shard.rank // ranks
    return Heads(share_of(each, Shard(shard.rank % ranks, ranks)).after(kv_head * each), Span(kv_head, kv_head + 1))


def share_columns(width: int, shard: Shard) -> Span | None:
    """Columns of an MLP, cut at multiples of a block, where there are fewer blocks than ranks of a panel, or None."""
    return next((_cut(width, unit, shard) for unit in (BLOCK, PANEL) if width // unit >= shard.size), None)


def share_rows(rows: int, shard: Shard) -> Span | None:
    """Rows of the output head, cut at multiples of a panel, or None where they do not suffice."""
    return _cut(rows, PANEL, shard) if rows // PANEL >= shard.size else None


def _cut(count: int, unit: int, shard: Shard) -> Span:
    return share_of(-(-count // unit), shard).times(unit, count)


def cuts(spans: Iterable[Span]) -> int:
    """The largest number that divides every place where `spans`, the shares of all ranks, meet; 0 without one."""
    return gcd(*{span.first for span in spans})


def cuttable(format: WeightFormat, cut: int) -> WeightFormat:
    """The format itself where inputs can be cut at multiples of `cut` and keep their codes, else the nearest that can.

    For "int4" the one with float16 scales, of which each group has its own; failing that smaller groups; failing that
    "int8" with one scale for each output, which is cut anywhere.
    """
    if cut % format.cut_unit == 0:
        return format
    asymmetric = format.codes == "int4"
    for group in (128, 64, 32):
        if group <= format.group and cut % group == 0:
            return replace(format, group=group, asymmetric=asymmetric)
    return replace(INT8, activation=format.activation)
