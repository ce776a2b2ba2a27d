"""The two halves of a decoder layer, composed of the other definitions; weights as dense matrices and a format."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torch_cpullm.formats import KvFormat, WeightFormat
from torch_cpullm.reference import attention as attentions
from torch_cpullm.reference import linear as linears
from torch_cpullm.reference import rowwise


@dataclass(frozen=True)
class DenseAttention:
    """Weights [N, K] and gains of an attention half, with its numbers."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor
    input_norm_D: torch.Tensor
    query_norm_C: torch.Tensor | None
    key_norm_C: torch.Tensor | None
    output_norm_D: torch.Tensor | None
    heads: int
    kv_heads: int
    scale: float
    soft_cap: float
    eps: float
    offset: float


def _project(x_BTD: torch.Tensor, weight_NK: torch.Tensor, format: WeightFormat) -> torch.Tensor:
    batch, tokens, depth = x_BTD.shape
    rows_MK = x_BTD.reshape(-1, depth)
    return linears.linear(rows_MK, linears.quantize(weight_NK, format)).view(batch, tokens, -1)


def attention_block(
    hidden_BTD: torch.Tensor,
    weights: DenseAttention,
    rope_BTR: tuple[torch.Tensor, torch.Tensor],
    formats: tuple[WeightFormat, KvFormat],
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The attention half of a layer without a past; `formats` are those of the weights and of the cache."""
    weight_format, kv_format = formats
    batch, tokens, _ = hidden_BTD.shape
    x_BTD = rowwise.rms_norm(hidden_BTD, weights.input_norm_D, weights.eps, weights.offset)
    q, k, v = (
        _project(x_BTD, weight, weight_format).view(batch, tokens, heads, -1)
        for weight, heads in ((weights.q, weights.heads), (weights.k, weights.kv_heads), (weights.v, weights.kv_heads))
    )
    if weights.query_norm_C is not None:
        q = rowwise.rms_norm(q, weights.query_norm_C, weights.eps, weights.offset)
    if weights.key_norm_C is not None:
        k = rowwise.rms_norm(k, weights.key_norm_C, weights.eps, weights.offset)
    q, k = rowwise.rope(q, *rope_BTR), rowwise.rope(k, *rope_BTR)
    k, v = attentions.round_kv(k, kv_format), attentions.round_kv(v, kv_format)
    seen = attentions.visible(torch.zeros(batch, dtype=torch.int32), tokens, tokens, mask)
    out_BTHC = attentions.attention(attentions.AttentionInputs(q, k, v, seen, weights.scale, weights.soft_cap))
    out_BTD = _project(out_BTHC.reshape(batch, tokens, -1), weights.o, weight_format)
    if weights.output_norm_D is not None:
        out_BTD = rowwise.rms_norm(out_BTD, weights.output_norm_D, weights.eps, weights.offset)
    return hidden_BTD + out_BTD


@dataclass(frozen=True)
class DenseMlp:
    """Weights [N, K] and gains of an MLP half."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    input_norm_D: torch.Tensor
    output_norm_D: torch.Tensor | None
    activation: str
    eps: float
    offset: float


def mlp_block(hidden_BTD: torch.Tensor, weights: DenseMlp, format: WeightFormat) -> torch.Tensor:
    """The MLP half of a layer."""
    x_BTD = rowwise.rms_norm(hidden_BTD, weights.input_norm_D, weights.eps, weights.offset)
    gate, up = _project(x_BTD, weights.gate, format), _project(x_BTD, weights.up, format)
    out_BTD = _project(rowwise.gated(gate, up, weights.activation), weights.down, format)
    if weights.output_norm_D is not None:
        out_BTD = rowwise.rms_norm(out_BTD, weights.output_norm_D, weights.eps, weights.offset)
    return hidden_BTD + out_BTD
