"""What detect() hands to plan(): names and numbers only, no modules and no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]
ActivationName = Literal["silu", "gelu_tanh", "gelu_erf", "relu"]

LEFT_OUT = {"left out": True}
"""Metadata of a field that records lack while it has its default (plan/record.py): they are what they were without."""


@dataclass(frozen=True)
class Finding:
    """A part of the model that does not match, and why."""

    path: str
    class_name: str
    reason: str


@dataclass(frozen=True)
class AttentionStructure:
    """A self-attention block: child names under the layer, and its numbers.

    `qkv` names three projections, or one fused one with the rows of q, k and v in that order, or `qkv_in_groups`: for
    each KV head those of its query heads, its key and its value. `rope_pairs`: channels (i, i + 1) turn together, not
    (i, i + R/2). `angle_table`: the buffer in which it looks up sines and cosines of its positions; None: the layer is
    called with them. One that does not `rotate` takes no notice of positions.
    """

    path: str
    qkv: tuple[str, ...]
    output: str
    query_norm: str | None
    key_norm: str | None
    heads: int
    kv_heads: int
    channels: int
    scale: float
    soft_cap: float
    layer_index: int
    qkv_in_groups: bool = field(default=False, metadata=LEFT_OUT)
    rope_pairs: bool = field(default=False, metadata=LEFT_OUT)
    angle_table: str | None = field(default=None, metadata=LEFT_OUT)
    rotates: bool = field(default=True, metadata=LEFT_OUT)


@dataclass(frozen=True)
class MlpStructure:
    """An MLP: child names under the layer, and its activation.

    `gate_up` names two projections or a fused one, or where it is not `gated` the one before the activation.
    """

    path: str
    gate_up: tuple[str, ...]
    down: str
    activation: ActivationName
    gated: bool = field(default=True, metadata=LEFT_OUT)


@dataclass(frozen=True)
class LayerStructure:
    """A decoder layer: norm, attention, (norm,) residual, norm, MLP, (norm,) residual.

    Norm names are children of the layer; the output norms exist in sandwich-normed models only. All norms of a layer
    share `eps` and `offset` (0, or 1 for zero-centred gains), and are RMS norms or, `centred`, layer norms.

    `parallel`: norm and attention, norm and MLP read the same hidden, and one residual takes both; the two norms may be
    one and the same. `returns_tuple`: hidden is the first of what its forward returns, the attention's weights or None
    the second. `settings`: numbers and words that the layer and its attention keep beside their modules.
    """

    path: str
    class_name: str
    attention: AttentionStructure
    mlp: MlpStructure | None
    attention_norm: str
    attention_output_norm: str | None
    mlp_norm: str
    mlp_output_norm: str | None
    eps: float
    offset: float
    centred: bool = field(default=False, metadata=LEFT_OUT)
    parallel: bool = field(default=False, metadata=LEFT_OUT)
    returns_tuple: bool = field(default=False, metadata=LEFT_OUT)
    settings: tuple[str, ...] = field(default=(), metadata=LEFT_OUT)

    def linear_paths(self, with_mlp: bool) -> tuple[str, ...]:
        """Of the linear layers that are fused, under the layer: attention's, and the MLP's where there is one."""
        attention, mlp = self.attention, self.mlp
        parts = [(attention.path, name) for name in (*attention.qkv, attention.output)]
        if with_mlp and mlp is not None:
            parts += [(mlp.path, name) for name in (*mlp.gate_up, mlp.down)]
        return tuple(f"{parent}.{name}" for parent, name in parts)

    def unrotated(self) -> LayerStructure:
        """The same layer, whose attention takes no notice of positions."""
        return replace(self, attention=replace(self.attention, rotates=False))

    def kind(self) -> tuple[object, ...]:
        """What two layers share when proving one proves the other: a setting may be all that tells them apart."""
        return (*self.form(), self.attention.rotates, self.settings)

    def form(self) -> tuple[object, ...]:
        """What two layers share that one operator can compute in turn."""
        attention, mlp = self.attention, self.mlp
        return (
            self.class_name,
            (
                attention.heads,
                attention.kv_heads,
                attention.channels,
                attention.scale,
                attention.soft_cap,
                attention.qkv,
                attention.qkv_in_groups,
                attention.rope_pairs,
                attention.angle_table,
            ),
            (attention.query_norm, attention.key_norm),
            (mlp.activation, mlp.gate_up, mlp.gated) if mlp else None,
            (self.attention_output_norm, self.mlp_output_norm, self.eps, self.offset, self.centred),
            (self.parallel, self.attention_norm == self.mlp_norm),
        )


@dataclass(frozen=True)
class LinearStructure:
    """A plain linear layer. `role` is "head" for the output embedding; `tied_to` names the module it shares with."""

    path: str
    out_features: int
    in_features: int
    dtype: Dtype
    role: Literal["projection", "head"]
    tied_to: str | None


@dataclass(frozen=True)
class EmbeddingStructure:
    """A plain table of token embeddings."""

    path: str
    rows: int
    width: int
    dtype: Dtype


@dataclass(frozen=True)
class Structure:
    """The model as torch_cpullm sees it."""

    class_name: str
    dtype: Dtype
    layers: tuple[LayerStructure, ...]
    linears: tuple[LinearStructure, ...]
    embeddings: tuple[EmbeddingStructure, ...]
    findings: tuple[Finding, ...]
    decoder_layers: int
    generates: bool

    def __repr__(self) -> str:
        """Count, do not list: a model has hundreds of parts."""
        return (
            f"Structure({self.class_name}, {self.dtype}: "
            f"{len(self.layers)} of {self.decoder_layers} decoder layers match, "
            f"{len(self.linears)} linear layers, {len(self.findings)} findings)"
        )
