"""Attention and MLP of a decoder layer: which child plays which part, or why it does not match."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from torch_cpullm.detect.probes import NormProbe, probe_activation, probe_angles, probe_linear, probe_norm
from torch_cpullm.detect.structure import AttentionStructure, MlpStructure

_MAX_CHANNELS = 256  # csrc/layout/kv_page.h, kMaxHeadChannels

# What transformers calls the parts. A name says where to look; what is there is probed, and the whole layer is proven.
_OUTPUTS = ("o_proj", "dense", "out_proj")
_IN_GROUPS = "query_key_value"
_HEAD_SIZES = ("head_dim", "head_size")
_ANGLES = "embed_positions"
_ACTIVATIONS = ("act_fn", "activation_fn", "act")
_MLPS = (
    ("gate_up_proj", "down_proj"),
    ("gate_proj", "up_proj", "down_proj"),
    ("fc1", "fc2"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("fc_in", "fc_out"),
    ("c_fc", "c_proj"),
)


class Mismatch(Exception):
    """Why a layer does not match."""


def first_of(module: nn.Module, names: Iterable[str]) -> str | None:
    """The first of `names` that `module` has something under."""
    return next((name for name in names if getattr(module, name, None) is not None), None)


def require_known(parent: nn.Module, known: Iterable[str | None]) -> None:
    """Raise Mismatch where a child with weights plays no part that is known."""
    for name, child in parent.named_children():
        if name not in set(known) and next(child.parameters(), None) is not None:
            raise Mismatch(f"{name} ({type(child).__name__}) plays no part that is known")


def match_norm(parent: nn.Module, name: str) -> NormProbe:
    """What the norm computes."""
    child = getattr(parent, name, None)
    probe = probe_norm(child) if isinstance(child, nn.Module) else None
    if probe is None:
        raise Mismatch(f"{name} ({type(child).__name__}) does not compute an RMS or a layer norm with a gain")
    return probe


def _linear(parent: nn.Module, name: str) -> nn.Linear:
    child = getattr(parent, name, None)
    if not isinstance(child, nn.Linear) or not probe_linear(child):
        raise Mismatch(f"{name} is {type(child).__name__}, no Linear" if child is not None else f"no {name}")
    return child


def _scalar(module: nn.Module, *names: str) -> float | None:
    for value in (getattr(module, name, None) for name in names):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return None


def match_attention(
    name: str, attention: nn.Module, hidden: int, rope_pairs: bool
) -> tuple[AttentionStructure, list[NormProbe]]:
    """The block, and what its head norms compute.

    Args:
        name: of the child.
        attention: it.
        hidden: the layer's width.
        rope_pairs: the model's angles stand side by side.

    Raises:
        Mismatch: the message is the reason.
    """
    channels, index, scale = (_scalar(attention, *names) for names in (_HEAD_SIZES, ("layer_idx",), ("scaling",)))
    if channels is None or index is None:
        raise Mismatch(f"{name} lacks head_dim or layer_idx")
    width = int(channels)
    if width % 16 or not 16 <= width <= _MAX_CHANNELS:
        raise Mismatch(f"head size {width}: the kernels take multiples of 16 up to {_MAX_CHANNELS}")
    output_name = first_of(attention, _OUTPUTS) or _OUTPUTS[0]
    output = _linear(attention, output_name)
    heads = output.in_features // width
    fused = first_of(attention, ("qkv_proj", _IN_GROUPS))
    if fused is not None:
        qkv: tuple[str, ...] = (fused,)
        kv_rows = (_linear(attention, fused).out_features - heads * width) // 2
    else:
        qkv = ("q_proj", "k_proj", "v_proj")
        kv_rows = _linear(attention, "k_proj").out_features
        if _linear(attention, "q_proj").out_features != heads * width:
            raise Mismatch(f"q_proj's outputs are not the heads {output_name} takes (an output gate?)")
        if _linear(attention, "v_proj").out_features != kv_rows:
            raise Mismatch("k_proj and v_proj differ in size")
    kv_heads = kv_rows // width
    if kv_heads < 1 or kv_rows % width or heads % kv_heads or output.in_features != heads * width:
        raise Mismatch("the projections' sizes are not whole heads")
    if any(_linear(attention, part).in_features != hidden for part in qkv) or output.out_features != hidden:
        raise Mismatch("the projections' sizes do not fit the hidden size")
    if getattr(attention, "sinks", None) is not None:
        raise Mismatch("attention sinks")
    head_norms = [part if hasattr(attention, part) else None for part in ("q_norm", "k_norm")]
    norms = [match_norm(attention, part) for part in head_norms if part is not None]
    if any(norm.width != width for norm in norms):
        raise Mismatch("q_norm and k_norm span more than one head")
    if any(norm_bias(attention, part) is not None for part in head_norms):
        raise Mismatch("q_norm and k_norm have biases")
    require_known(attention, (*qkv, output_name, *head_norms))
    angle_table = _ANGLES if probe_angles(getattr(attention, _ANGLES, None)) else None
    structure = AttentionStructure(
        path=name,
        qkv=qkv,
        output=output_name,
        query_norm=head_norms[0],
        key_norm=head_norms[1],
        heads=heads,
        kv_heads=kv_heads,
        channels=width,
        scale=width**-0.5 if scale is None else scale,
        soft_cap=_scalar(attention, "attn_logit_softcapping") or 0.0,
        layer_index=int(index),
        qkv_in_groups=fused == _IN_GROUPS,
        rope_pairs=rope_pairs or angle_table is not None,
        angle_table=angle_table,
    )
    return structure, norms


def norm_bias(parent: nn.Module, name: str | None) -> torch.Tensor | None:
    """The bias of a norm, if it has one."""
    bias = getattr(getattr(parent, name, None), "bias", None) if name else None
    return bias if isinstance(bias, torch.Tensor) else None


def match_mlp(name: str, mlp: nn.Module, hidden: int) -> MlpStructure:
    """The block. Raises Mismatch with the reason."""
    *gate_up, down_name = next((names for names in _MLPS if hasattr(mlp, names[0])), _MLPS[1])
    down = _linear(mlp, down_name)
    outputs = sum(_linear(mlp, part).out_features for part in gate_up)
    gated = outputs == 2 * down.in_features
    if not (gated or (outputs == down.in_features and len(gate_up) == 1)) or down.out_features != hidden:
        raise Mismatch("gate, up and down do not fit each other")
    activation = probe_activation(getattr(mlp, first_of(mlp, _ACTIVATIONS) or "", None))
    if activation is None:
        raise Mismatch(f"{name}'s activation is none of silu, gelu (tanh), gelu (erf), relu")
    require_known(mlp, (*gate_up, down_name))
    return MlpStructure(path=name, gate_up=tuple(gate_up), down=down_name, activation=activation, gated=gated)
