"""Where the linear layers of a decoder layer, and the head, are cut for one rank; and what explain() says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch_cpullm.detect.structure import AttentionStructure, LayerStructure, LinearStructure
from torch_cpullm.plan.shard import (
    EVERYTHING,
    PANEL,
    Heads,
    Part,
    Shard,
    Share,
    Span,
    cuts,
    share_columns,
    share_heads,
    share_rows,
)


@dataclass(frozen=True)
class Piece:
    """One rank's part of a linear layer; all ranks cut its inputs at multiples of `cut` (0: nobody does)."""

    part: Part
    cut: int = 0


@dataclass(frozen=True)
class Division:
    """What a rank has of a module with linear layers.

    Attributes:
        share: of a decoder layer.
        pieces: of its linear layers, by path; those that are whole are not in it.
        notes: sentences for explain().
    """

    share: Share = EVERYTHING
    pieces: Mapping[str, Piece] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Linears = Mapping[str, LinearStructure]


def divide_layer(layer: LayerStructure, linears: Linears, shard: Shard, fuse_mlp: bool) -> Division:
    """A layer whose attention is fused, its MLP as well or not."""
    heads, heads_note = share_heads(layer.attention, shard), _heads_note(layer, shard)
    pieces = _attention_pieces(layer, linears, shard, heads) if heads else {}
    if layer.mlp is None or not fuse_mlp:
        return Division(Share(heads), pieces, (heads_note, "MLP replicated: it is the model's own"))
    width = linears[f"{layer.path}.{layer.mlp.path}.{layer.mlp.down}"].in_features
    columns = share_columns(width, shard)
    if columns is None:
        note = f"MLP replicated: {width} columns are less than a panel of {PANEL} for each of {shard.size} ranks"
        return Division(Share(heads), pieces, (heads_note, note))
    pieces |= _mlp_pieces(layer, linears, shard, columns)
    note = f"rank {shard.rank} of {shard.size}: MLP columns {columns} of {width}"
    return Division(Share(heads, columns), pieces, (heads_note, note))


def divide_head(head: LinearStructure, shard: Shard) -> Division:
    """The output head, by rows of the vocabulary. The table of embeddings stays whole, and apart from it."""
    rows = share_rows(head.out_features, shard)
    if rows is None:
        note = (
            f"head replicated: {head.out_features} rows are less than a panel of {PANEL} for each of {shard.size} ranks"
        )
        return Division(notes=(note,))
    note = f"rank {shard.rank} of {shard.size}: head rows {rows} of {head.out_features}; every rank has all embeddings"
    # A tied head costs its rows a second time, a share of the table. One table for both would have to be whole, and the
    # head would read all of it for every token.
    tied = ", and so the tied head is a copy of its rows" if head.tied_to else ", since tokens come as ids"
    return Division(pieces={head.path: _by_rows(head, (rows,))}, notes=(note + tied,))


def _heads_note(layer: LayerStructure, shard: Shard) -> str:
    attention = layer.attention
    heads = share_heads(attention, shard)
    if heads is None:
        return (
            f"attention replicated: {attention.heads} heads over {attention.kv_heads} KV heads do not divide among "
            f"{shard.size} ranks"
        )
    note = (
        f"rank {shard.rank} of {shard.size}: query heads {heads.query} of {attention.heads}, "
        f"KV heads {heads.kv} of {attention.kv_heads}"
    )
    if shard.size > attention.kv_heads:
        note += f", each of which {shard.size // attention.kv_heads} ranks have"
    return note


def _by_rows(linear: LinearStructure, rows: tuple[Span, ...]) -> Piece:
    return Piece(Part(rows, Span(0, linear.in_features), bias=True))


def _by_inputs(linear: LinearStructure, inputs: Span, cut: int, shard: Shard) -> Piece:
    # The terms of all ranks are added up, so one of them brings the bias.
    return Piece(Part((Span(0, linear.out_features),), inputs, bias=shard.rank == 0), cut)


def _attention_pieces(layer: LayerStructure, linears: Linears, shard: Shard, heads: Heads) -> dict[str, Piece]:
    attention = layer.attention
    channels, parent = attention.channels, f"{layer.path}.{attention.path}"
    rows: tuple[tuple[Span, ...], ...]
    query, kv = heads.query.times(channels), heads.kv.times(channels)
    key_begins = attention.heads * channels  # in a fused weight
    value_begins = key_begins + attention.kv_heads * channels
    if attention.qkv_in_groups:
        rows = (_group_rows(attention, heads),)
    elif len(attention.qkv) == 1:
        rows = ((query, kv.after(key_begins), kv.after(value_begins)),)
    else:
        rows = ((query,), (kv,), (kv,))
    paths = [f"{parent}.{name}" for name in attention.qkv]
    pieces = {path: _by_rows(linears[path], spans) for path, spans in zip(paths, rows, strict=True)}
    everyone = (share_heads(attention, Shard(rank, shard.size)) for rank in range(shard.size))
    cut = cuts(each.query.times(channels) for each in everyone if each)
    output = f"{parent}.{attention.output}"
    return pieces | {output: _by_inputs(linears[output], query, cut, shard)}


def _group_rows(attention: AttentionStructure, heads: Heads) -> tuple[Span, ...]:
    """Of a weight that has query heads, key and value of each KV head together: whole groups, or some heads of one."""
    channels, each = attention.channels, attention.heads // attention.kv_heads
    group = each + 2
    if len(heads.query) == each * len(heads.kv):
        return (heads.kv.times(group * channels),)
    first = heads.kv.first * group
    query = Span(heads.query.first - heads.kv.first * each, heads.query.stop - heads.kv.first * each).after(first)
    return (query.times(channels), Span(first + each, first + group).times(channels))


def _mlp_pieces(layer: LayerStructure, linears: Linears, shard: Shard, columns: Span) -> dict[str, Piece]:
    mlp = layer.mlp
    assert mlp is not None
    parent = f"{layer.path}.{mlp.path}"
    down = linears[f"{parent}.{mlp.down}"]
    fused = mlp.gated and len(mlp.gate_up) == 1
    rows = (columns, columns.after(down.in_features)) if fused else (columns,)
    paths = [f"{parent}.{name}" for name in mlp.gate_up]
    pieces = {path: _by_rows(linears[path], rows) for path in paths}
    everyone = (share_columns(down.in_features, Shard(rank, shard.size)) for rank in range(shard.size))
    cut = cuts(each for each in everyone if each)
    return pieces | {down.path: _by_inputs(down, columns, cut, shard)}
