"""The two halves of a decoder layer, one op each (csrc/drivers/blocks.h draws the phases)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from torch_cpullm.ops.attention import KvPages
from torch_cpullm.ops.comm import collective
from torch_cpullm.ops.library import fake, kernels
from torch_cpullm.ops.rowwise import Activation


@dataclass(frozen=True)
class NormNumbers:
    """What all norms of a layer share: they are RMS norms, x / sqrt(mean(x^2) + eps) * (weight + offset).

    `centred`: they are layer norms, (x - mean) / sqrt(variance + eps) * weight + bias; the offset is 0.
    """

    eps: float
    offset: float
    centred: bool = False


class AttentionWeights(NamedTuple):
    """Tensors of an attention block: packed weights, and norm gains [D] or [C] in any float dtype (None: no norm).

    `qkv` holds q, k and v, or one fused weight with their rows in that order, or in groups (AttentionNumbers). The bias
    of a norm has its gain's dtype.
    """

    qkv: list[torch.Tensor]
    output: torch.Tensor
    input_norm_D: torch.Tensor
    query_norm_C: torch.Tensor | None
    key_norm_C: torch.Tensor | None
    output_norm_D: torch.Tensor | None
    input_norm_bias_D: torch.Tensor | None = None


@dataclass(frozen=True)
class AttentionNumbers:
    """What an attention block knows beside its tensors.

    Attributes:
        heads: query heads; where ranks have some of the heads each, this rank's.
        kv_heads: likewise.
        scale: factor on scores.
        soft_cap: on scores; 0: none.
        group: of the ranks; 0: there are no others.
        qkv_in_groups: the fused weight has the rows of each KV head together: its query heads, its key, its value.
        rope_pairs: channels (i, i + 1) turn together, not (i, i + R/2).
    """

    heads: int
    kv_heads: int
    scale: float
    soft_cap: float
    group: int = 0
    qkv_in_groups: bool = False
    rope_pairs: bool = False


class MlpWeights(NamedTuple):
    """Tensors of an MLP block.

    `gate_up` holds gate and up, or one fused weight with their rows in that order, or where nothing is gated the one
    weight before the activation.
    """

    gate_up: list[torch.Tensor]
    down: torch.Tensor
    input_norm_D: torch.Tensor
    output_norm_D: torch.Tensor | None
    input_norm_bias_D: torch.Tensor | None = None


def attention_block(
    hidden_BTD: torch.Tensor,
    weights: AttentionWeights,
    rope_BTR: tuple[torch.Tensor, torch.Tensor],
    kv: KvPages,
    mask: torch.Tensor | None,
    numbers: AttentionNumbers,
    norm: NormNumbers,
) -> torch.Tensor:
    """Hidden + output_norm(W_o attention(rope(W_qkv input_norm(hidden)))), and the new keys and values into the pool.

    Ranks of a group give the same hidden and have their heads' weights: `W_o attention(...)` is the sum of all theirs,
    each rounded to hidden's dtype, and the output is the same on all.

    Args:
        hidden_BTD: float32, bfloat16 or float16; float32 inside.
        weights: see AttentionWeights.
        rope_BTR: cos and sin, [B or 1, T, R].
        kv: the layer's pages; tokens past .. past + T - 1 are written.
        mask: as in `paged_attention`.
        numbers: see AttentionNumbers.
        norm: see NormNumbers.

    Raises:
        CollectiveError: another rank of the group is gone, late, or asked for something else.
    """
    with collective():
        out: torch.Tensor = kernels.attention_block(
            hidden_BTD,
            weights.qkv,
            weights.output,
            weights.input_norm_D,
            weights.input_norm_bias_D,
            weights.query_norm_C,
            weights.key_norm_C,
            weights.output_norm_D,
            *rope_BTR,
            kv.pages,
            kv.table_BP,
            kv.past_B,
            mask,
            numbers.heads,
            numbers.kv_heads,
            kv.format,
            norm.eps,
            norm.offset,
            norm.centred,
            numbers.scale,
            numbers.soft_cap,
            numbers.qkv_in_groups,
            numbers.rope_pairs,
            numbers.group,
        )
    return out


def mlp_block(
    hidden_BTD: torch.Tensor, weights: MlpWeights, activation: Activation, norm: NormNumbers, group: int = 0
) -> torch.Tensor:
    """Hidden + output_norm(W_down(activation(W_gate x) * (W_up x))), x = input_norm(hidden).

    Without W_up it is activation(W_gate x) that W_down takes.

    Args:
        hidden_BTD: float32, bfloat16 or float16; float32 inside.
        weights: see MlpWeights.
        activation: of the gate.
        norm: see NormNumbers.
        group: of ranks that have some of the columns of gate and up each, as in `attention_block`; 0: of nobody else.

    Raises:
        CollectiveError: another rank of the group is gone, late, or asked for something else.
    """
    with collective():
        out: torch.Tensor = kernels.mlp_block(
            hidden_BTD,
            weights.gate_up,
            weights.down,
            weights.input_norm_D,
            weights.input_norm_bias_D,
            weights.output_norm_D,
            activation,
            norm.eps,
            norm.offset,
            norm.centred,
            group,
        )
    return out


@fake("attention_block")
def _(hidden: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


@fake("mlp_block")
def _(hidden: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)
