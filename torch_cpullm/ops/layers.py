"""All decoder layers of a step, one op (csrc/bindings/layers.cpp): blocks of ops/block.py in turn, or in parallel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from torch_cpullm.formats import KvFormat
from torch_cpullm.ops.block import AttentionNumbers, AttentionWeights, MlpWeights, NormNumbers
from torch_cpullm.ops.comm import collective
from torch_cpullm.ops.library import fake, kernels
from torch_cpullm.ops.rowwise import Activation


@dataclass(frozen=True)
class LayerNumbers:
    """What all layers have in common beside their tensors; `mlp_group` as in `mlp_block`.

    `parallel`: attention and MLP read the same hidden, and what both give is added to it.
    """

    attention: AttentionNumbers
    norm: NormNumbers
    activation: Activation
    mlp_group: int = 0
    parallel: bool = False


class KvLayers(NamedTuple):
    """KvPages of all layers, which differ in their pages only.

    Attributes:
        pages: of each layer in order, uint8 [pages, layer bytes].
        table_BP: see KvPages.
        past_B: see KvPages.
        kv_heads: see KvPages.
        format: see KvPages.
    """

    pages: list[torch.Tensor]
    table_BP: torch.Tensor
    past_B: torch.Tensor
    kv_heads: int
    format: KvFormat


class LayerWeights(NamedTuple):
    """The tensors of one layer, and whether its attention rotates queries and keys by their positions."""

    attention: AttentionWeights
    mlp: MlpWeights
    rotates: bool = True


@dataclass(frozen=True)
class LayerStack:
    """Decoder layers in order. Made by `stack_layers`.

    Attributes:
        lists: their tensors by kind, in the order of the op's arguments from qkv to mlp_output_norm; a list is as long
            as there are layers, twice or three times that (qkv, gate_up), or empty (a norm that they lack).
        numbers: of all layers.
        unrotated: which of them do not rotate.
    """

    lists: tuple[list[torch.Tensor], ...]
    numbers: LayerNumbers
    unrotated: tuple[int, ...] = ()


def stack_layers(weights: Sequence[LayerWeights], numbers: LayerNumbers) -> LayerStack:
    """Bring the tensors of layers together by kind.

    Args:
        weights: of each layer, one at least; those that one layer lacks (norms) all of them must lack.
        numbers: of all layers.
    """
    attention, mlp = [layer.attention for layer in weights], [layer.mlp for layer in weights]
    lists = (
        [weight for layer in attention for weight in layer.qkv],
        [layer.output for layer in attention],
        _present(layer.input_norm_D for layer in attention),
        _present(layer.input_norm_bias_D for layer in attention),
        _present(layer.query_norm_C for layer in attention),
        _present(layer.key_norm_C for layer in attention),
        _present(layer.output_norm_D for layer in attention),
        [weight for layer in mlp for weight in layer.gate_up],
        [layer.down for layer in mlp],
        _present(layer.input_norm_D for layer in mlp),
        _present(layer.input_norm_bias_D for layer in mlp),
        _present(layer.output_norm_D for layer in mlp),
    )
    return LayerStack(lists, numbers, tuple(index for index, layer in enumerate(weights) if not layer.rotates))


def _present(tensors: Iterable[torch.Tensor | None]) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def decoder_layers(
    hidden_BTD: torch.Tensor,
    stack: LayerStack,
    rope_BTR: tuple[torch.Tensor, torch.Tensor],
    kv: KvLayers,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """What `attention_block` and `mlp_block` of each layer give, one after the other: [B, T, D], the same bits.

    Of parallel layers it is hidden + (what the one adds to hidden + what the other adds), in float: rounded once a
    layer, and where ranks share them once by each rank, which sends both as one.

    Args:
        hidden_BTD: float32, bfloat16 or float16; rounded to that dtype after each block, or each parallel layer.
        stack: the layers.
        rope_BTR: cos and sin, [B or 1, T, R], for all layers.
        kv: pages; tokens past .. past + T - 1 are written.
        mask: as in `paged_attention`, for all layers.

    Raises:
        ValueError: shapes that do not fit, or lists that are not equally long. Nothing was written then.
        CollectiveError: another rank is gone, late, or asked for something else.
    """
    numbers = stack.numbers
    with collective():
        out: torch.Tensor = kernels.decoder_layers(
            hidden_BTD,
            *stack.lists,
            *rope_BTR,
            stack.unrotated,
            kv.pages,
            kv.table_BP,
            kv.past_B,
            mask,
            numbers.attention.heads,
            kv.kv_heads,
            kv.format,
            numbers.activation,
            numbers.norm.eps,
            numbers.norm.offset,
            numbers.norm.centred,
            numbers.attention.scale,
            numbers.attention.soft_cap,
            numbers.attention.qkv_in_groups,
            numbers.attention.rope_pairs,
            numbers.parallel,
            numbers.attention.group,
            numbers.mlp_group,
        )
    return out


@fake("decoder_layers")
def _(hidden: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)
