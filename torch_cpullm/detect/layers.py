"""Pre-normed decoder layers with attention and a gated MLP: which child plays which part, or why it does not match."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from torch_cpullm.detect.probes import NormProbe, probe_activation, probe_norm
from torch_cpullm.detect.structure import AttentionStructure, LayerStructure, MlpStructure

_MAX_CHANNELS = 256  # csrc/layout/kv_page.h, kMaxHeadChannels


class Mismatch(Exception):
    """Why a layer does not match."""


@dataclass(frozen=True)
class Candidate:
    """A module that might be a decoder layer, with its name in the model."""

    path: str
    module: nn.Module


def find_candidates(model: nn.Module) -> list[Candidate]:
    """Members of module lists that have an attention child: what every transformers decoder keeps its layers in."""
    return [
        Candidate(f"{path}.{index}" if path else index, layer)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for index, layer in module.named_children()
        if any("attn" in name or "attention" in name for name, _ in layer.named_children())
    ]


def _linear(parent: nn.Module, name: str) -> nn.Linear:
    child = getattr(parent, name, None)
    if type(child) is not nn.Linear:
        raise Mismatch(f"{name} is {type(child).__name__}, not a plain Linear" if child is not None else f"no {name}")
    return child


def _norm(parent: nn.Module, name: str) -> NormProbe:
    child = getattr(parent, name, None)
    probe = probe_norm(child) if isinstance(child, nn.Module) else None
    if probe is None:
        raise Mismatch(f"{name} ({type(child).__name__}) does not compute an RMS norm with a gain")
    return probe


def _scalar(module: nn.Module, name: str) -> float | None:
    value = getattr(module, name, None)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _match_attention(name: str, attention: nn.Module, hidden: int) -> tuple[AttentionStructure, list[NormProbe]]:
    channels, index, scale = (_scalar(attention, key) for key in ("head_dim", "layer_idx", "scaling"))
    if channels is None or index is None or scale is None:
        raise Mismatch(f"{name} lacks head_dim, layer_idx or scaling")
    width = int(channels)
    if width % 16 or not 16 <= width <= _MAX_CHANNELS:
        raise Mismatch(f"head size {width}: the kernels take multiples of 16 up to {_MAX_CHANNELS}")
    output = _linear(attention, "o_proj")
    heads = output.in_features // width
    if hasattr(attention, "qkv_proj"):
        qkv: tuple[str, ...] = ("qkv_proj",)
        kv_rows = (_linear(attention, "qkv_proj").out_features - heads * width) // 2
    else:
        qkv = ("q_proj", "k_proj", "v_proj")
        kv_rows = _linear(attention, "k_proj").out_features
        if _linear(attention, "q_proj").out_features != heads * width:
            raise Mismatch("q_proj's outputs are not the heads o_proj takes (an output gate?)")
        if _linear(attention, "v_proj").out_features != kv_rows:
            raise Mismatch("k_proj and v_proj differ in size")
    kv_heads = kv_rows // width
    if kv_heads < 1 or kv_rows % width or heads % kv_heads or output.in_features != heads * width:
        raise Mismatch("the projections' sizes are not whole heads")
    if any(_linear(attention, part).in_features != hidden for part in qkv) or output.out_features != hidden:
        raise Mismatch("the projections' sizes do not fit the hidden size")
    if getattr(attention, "sinks", None) is not None:
        raise Mismatch("attention sinks")
    norms = [_norm(attention, part) for part in ("q_norm", "k_norm") if hasattr(attention, part)]
    if any(norm.width != width for norm in norms):
        raise Mismatch("q_norm and k_norm span more than one head")
    structure = AttentionStructure(
        path=name,
        qkv=qkv,
        output="o_proj",
        query_norm="q_norm" if hasattr(attention, "q_norm") else None,
        key_norm="k_norm" if hasattr(attention, "k_norm") else None,
        heads=heads,
        kv_heads=kv_heads,
        channels=width,
        scale=scale,
        soft_cap=_scalar(attention, "attn_logit_softcapping") or 0.0,
        layer_index=int(index),
    )
    return structure, norms


def _match_mlp(name: str, mlp: nn.Module, hidden: int) -> MlpStructure:
    down = _linear(mlp, "down_proj")
    gate_up = ("gate_up_proj",) if hasattr(mlp, "gate_up_proj") else ("gate_proj", "up_proj")
    if sum(_linear(mlp, part).out_features for part in gate_up) != 2 * down.in_features or down.out_features != hidden:
        raise Mismatch("gate, up and down do not fit each other")
    activation = probe_activation(getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None))
    if activation is None:
        raise Mismatch(f"{name}'s activation is none of silu, gelu (tanh), gelu (erf)")
    return MlpStructure(path=name, gate_up=gate_up, down="down_proj", activation=activation)


def match_layer(candidate: Candidate) -> tuple[LayerStructure, str | None]:
    """Match one layer; the second value says why its MLP stays the model's own, if it does.

    Raises:
        Mismatch: the attention half does not match; the message is the reason.
    """
    layer = candidate.module
    attention = getattr(layer, "self_attn", None)
    if not isinstance(attention, nn.Module):
        raise Mismatch("no self_attn")
    sandwich = hasattr(layer, "pre_feedforward_layernorm")
    names = ["input_layernorm", "post_attention_layernorm"]
    names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if sandwich else []
    probes = [_norm(layer, name) for name in names]
    structure, head_norms = _match_attention("self_attn", attention, probes[0].width)
    if len({(probe.eps, probe.offset) for probe in (*probes, *head_norms)}) != 1:
        raise Mismatch("the layer's norms differ in eps or in the centre of their gains")
    mlp, reason = None, None
    try:
        mlp = _match_mlp("mlp", getattr(layer, "mlp", nn.Module()), probes[0].width)
    except Mismatch as mismatch:
        reason = str(mismatch)
    matched = LayerStructure(
        path=candidate.path,
        class_name=type(layer).__name__,
        attention=structure,
        mlp=mlp,
        attention_norm=names[0],
        attention_output_norm=names[1] if sandwich else None,
        mlp_norm=names[2] if sandwich else names[1],
        mlp_output_norm=names[3] if sandwich else None,
        eps=probes[0].eps,
        offset=probes[0].offset,
    )
    return matched, reason
