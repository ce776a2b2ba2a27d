"""How long one token takes on several ranks: a model of it, in terms that can be measured one by one.

    step = bytes / (bandwidth * share)                             what the rank reads: its weights, its keys and values
         + layers * meetings * reduce + exchange                   what it waits for the others
         + layers * layer + token                                  what the host does whatever the sizes

One row is decoded by reading every weight once, so arithmetic does not appear. Pure functions of numbers: where these
come from is bench/bench_scaling.py's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Decoder:
    """The sizes of a model that a step depends on.

    Attributes:
        layers: decoder layers.
        hidden: elements between them, which are what ranks sum.
        heads: of queries.
        kv_heads: of keys and values.
        channels: of a head.
        ffn: columns of the MLP, which has a gate.
        words: of the vocabulary.
        meetings: sums over all ranks in a layer: 2, or 1 where attention and MLP run in parallel.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    channels: int
    ffn: int
    words: int
    meetings: int = 2

    @staticmethod
    def of(config: Any) -> Decoder:
        """From the configuration of a model like Llama."""
        return Decoder(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            channels=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            ffn=config.intermediate_size,
            words=config.vocab_size,
        )

    @property
    def layer_weights(self) -> int:
        """Elements of the matrices of one layer."""
        return self.hidden * (self.channels * 2 * (self.heads + self.kv_heads) + 3 * self.ffn)

    @property
    def head_weights(self) -> int:
        """Elements of the matrix behind all layers."""
        return self.hidden * self.words


@dataclass(frozen=True)
class Format:
    """Bits that an element takes, scales included."""

    layers: float
    head: float
    kv: float


@dataclass(frozen=True)
class Costs:
    """What one rank's time is made of, in seconds and bytes per second.

    Attributes:
        bandwidth: that one rank reads at while all of them do.
        share: of it that the kernels reach.
        reduce_s: one sum of a row of hidden size over all ranks, called from within a layer; 0 for a rank alone.
        exchange_s: once a token: the candidates of each rank's words, the chosen one, whether to stop; 0 for one alone.
        layer_s: of the host, for each layer.
        token_s: of the host, for each token.
    """

    bandwidth: float
    share: float
    reduce_s: float
    exchange_s: float
    layer_s: float
    token_s: float


@dataclass(frozen=True)
class Step:
    """The time of one token and its parts, in seconds."""

    memory_s: float
    meetings_s: float
    host_s: float

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return self.memory_s + self.meetings_s + self.host_s


def bytes_read(decoder: Decoder, format: Format, context: int, ranks: int = 1) -> float:
    """Bytes that one of `ranks` ranks reads for a token behind `context` others; parts are equal.

    With more ranks than KV heads, several read the same keys and values.
    """
    weights = decoder.layers * decoder.layer_weights * format.layers + decoder.head_weights * format.head
    kv_elements = 2 * decoder.layers * context * decoder.kv_heads * decoder.channels
    return (weights / ranks + kv_elements * format.kv / min(ranks, decoder.kv_heads)) / 8


def step_time(decoder: Decoder, read: float, costs: Costs) -> Step:
    """The time of one token of a rank that reads `read` bytes for it."""
    return Step(
        memory_s=read / (costs.bandwidth * costs.share),
        meetings_s=decoder.layers * decoder.meetings * costs.reduce_s + costs.exchange_s,
        host_s=decoder.layers * costs.layer_s + costs.token_s,
    )


def between_sockets(pair_s: float, ranks: int, distance: float) -> float:
    """The time of a small message among `ranks` sockets of one host, from that between two cores of one socket.

    In one phase (csrc/comm/README.md) each rank reads the parts of all others, one after the other: n - 1 times as many
    lines, each `distance` times as long on its way.
    """
    return pair_s * (ranks - 1) * distance
