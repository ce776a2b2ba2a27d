"""Pre-normed decoder layers with attention and an MLP, in turn or side by side, or why they do not match."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import nn

from torch_cpullm.detect.blocks import (
    Mismatch,
    first_of,
    match_attention,
    match_mlp,
    match_norm,
    norm_bias,
    require_known,
)
from torch_cpullm.detect.structure import LayerStructure

_ATTENTIONS = ("self_attn", "attention", "self_attention", "attn")
_NORMS = (("input_layernorm", "post_attention_layernorm"), ("ln_1", "ln_2"), ("ln_attn", "ln_mlp"))
_BESIDE = "ln_attn"  # a norm of attention's own, beside one of the MLP's
_PLACE = ("layer_idx", "training")
_SANDWICH = ("pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class Candidate:
    """A module that might be a decoder layer, with its name in the model."""

    path: str
    module: nn.Module


@dataclass(frozen=True)
class _Norms:
    """Names of a layer's norms by their places; the order of the two halves follows from which there are."""

    attention: str
    attention_output: str | None
    mlp: str
    mlp_output: str | None
    parallel: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.attention, self.attention_output, self.mlp, self.mlp_output) if name)


def find_candidates(model: nn.Module) -> list[Candidate]:
    """Members of module lists that have an attention child: what every transformers decoder keeps its layers in."""
    return [
        Candidate(f"{path}.{index}" if path else index, layer)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for index, layer in module.named_children()
        if any("attn" in name or "attention" in name for name, _ in layer.named_children())
    ]


def _find_norms(layer: nn.Module) -> _Norms:
    first, second = next((pair for pair in _NORMS if getattr(layer, pair[0], None) is not None), _NORMS[0])
    if hasattr(layer, _SANDWICH[0]):
        return _Norms(first, second, *_SANDWICH, parallel=False)
    if getattr(layer, second, None) is None:  # one norm can serve both halves only where both read its rows
        return _Norms(first, None, first, None, parallel=True)
    parallel = first == _BESIDE or getattr(layer, "use_parallel_residual", False) is True
    return _Norms(first, None, second, None, parallel=parallel)


def _settings(module: nn.Module) -> tuple[str, ...]:
    """All but its place: a layer may leave something out, or do it otherwise, for no other sign than one of these."""
    plain = {
        name: value for name, value in vars(module).items() if isinstance(value, (bool, int, float, str, type(None)))
    }
    return tuple(f"{name}={plain[name]}" for name in sorted(plain) if name[0] != "_" and name not in _PLACE)


def match_layer(candidate: Candidate, rope_pairs: bool) -> tuple[LayerStructure, str | None]:
    """Match one layer; the second value says why its MLP stays the model's own, if it does.

    Raises:
        Mismatch: the attention half does not match; the message is the reason.
    """
    layer = candidate.module
    name = first_of(layer, _ATTENTIONS)
    attention = getattr(layer, name) if name else None
    if name is None or not isinstance(attention, nn.Module):
        raise Mismatch(f"none of {', '.join(_ATTENTIONS)}")
    norms = _find_norms(layer)
    probes = [match_norm(layer, norm) for norm in norms.names]
    structure, head_norms = match_attention(name, attention, probes[0].width, rope_pairs)
    if len({(probe.eps, probe.offset, probe.centred) for probe in (*probes, *head_norms)}) != 1:
        raise Mismatch("the layer's norms differ in kind, in eps or in the centre of their gains")
    if any(norm_bias(layer, norm) is not None for norm in (norms.attention_output, norms.mlp_output)):
        raise Mismatch("the norms behind attention and MLP have biases")
    mlp, reason = None, None
    try:
        mlp = match_mlp("mlp", getattr(layer, "mlp", nn.Module()), probes[0].width)
    except Mismatch as mismatch:
        reason = str(mismatch)
    require_known(layer, (name, "mlp", *norms.names))
    matched = LayerStructure(
        path=candidate.path,
        class_name=type(layer).__name__,
        attention=structure,
        mlp=mlp,
        attention_norm=norms.attention,
        attention_output_norm=norms.attention_output,
        mlp_norm=norms.mlp,
        mlp_output_norm=norms.mlp_output,
        eps=probes[0].eps,
        offset=probes[0].offset,
        centred=probes[0].centred,
        parallel=norms.parallel,
        returns_tuple="output_attentions" in inspect.signature(type(layer).forward).parameters,
        settings=(*_settings(layer), *_settings(attention)),
    )
    return matched, reason
