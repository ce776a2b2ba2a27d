"""The paged KV pool's ops and SlimAttention over it. Layout of a page: csrc/layout/kv_page.h."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torch_cpullm.formats import KvFormat
from torch_cpullm.ops.library import fake, kernels

PAGE_TOKENS: int = kernels.kv_page_tokens()


@dataclass(frozen=True)
class KvPages:
    """One layer's view of a pool, as the ops take it.

    Attributes:
        pages: uint8 [pages, layer bytes], rows contiguous, a multiple of 4 bytes apart, and not overlapping.
        table_BP: int32, the page numbers of each sequence in order.
        past_B: int32, tokens each sequence held before the call.
        kv_heads: G.
        format: element format of the codes.
    """

    pages: torch.Tensor
    table_BP: torch.Tensor
    past_B: torch.Tensor
    kv_heads: int
    format: KvFormat


def layer_bytes(kv_heads: int, channels: int, format: KvFormat) -> int:
    """Bytes of one layer's share of a page of PAGE_TOKENS tokens. Raises ValueError for an unsupported head size."""
    return int(kernels.kv_layer_bytes(kv_heads, channels, format))


def kv_append(kv: KvPages, key_BTGC: torch.Tensor, value_BTGC: torch.Tensor) -> None:
    """Write T tokens behind each sequence's past. int8: one symmetric scale per token and head (absmax / 127).

    Raises:
        ValueError, IndexError: shapes that do not fit the pool, or a table that names pages it does not have; nothing
            is written then.
    """
    kernels.kv_append(kv.pages, kv.table_BP, kv.past_B, key_BTGC, value_BTGC, kv.format)


def kv_gather(kv: KvPages, length: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `length` tokens of every sequence, dequantised: float32 key and value [B, G, length, C]."""
    gathered: tuple[torch.Tensor, torch.Tensor] = kernels.kv_gather(
        kv.pages, kv.table_BP.contiguous(), length, kv.kv_heads, channels, kv.format
    )
    return gathered


def paged_attention(
    query_BTHC: torch.Tensor, kv: KvPages, mask: torch.Tensor | None, scale: float, soft_cap: float = 0.0
) -> torch.Tensor:
    """Attend from T query tokens to the `past + T` cached ones; their own keys and values must be appended already.

    SlimAttention (arXiv 2407.07304, section 2.2): whole score rows, one softmax each. Codes are widened in registers;
    the key scale multiplies a score, the value scale a probability.

    Args:
        query_BTHC: H a multiple of `kv.kv_heads`.
        kv: the pool's layer.
        mask: bool [B or 1, H or 1, T, S >= past + T], True attends; None is causal. A row with nothing gives zeros.
        scale: multiplies the scores.
        soft_cap: 0 for none, else scores become soft_cap * tanh(score / soft_cap) before the mask.

    Returns:
        [B, T, H, C] in the query's dtype.
    """
    out: torch.Tensor = kernels.paged_attention(
        query_BTHC, kv.pages, kv.table_BP, kv.past_B, mask, kv.kv_heads, kv.format, scale, soft_cap
    )
    return out


def slim_attention(
    query_BTHC: torch.Tensor,
    key_BSGC: torch.Tensor,
    value_BSGC: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    soft_cap: float = 0.0,
) -> torch.Tensor:
    """SlimAttention over dense keys and values, kept in float32: queries are the last T of the S tokens.

    Arguments as in `paged_attention`. Lays the keys and values out as pages first, which costs one pass over them.
    """
    out: torch.Tensor = kernels.slim_attention(query_BTHC, key_BSGC, value_BSGC, mask, scale, soft_cap)
    return out


@fake("kv_append")
def _(*_: object) -> None:
    return None


@fake("kv_gather")
def _(
    pages: torch.Tensor, page_table: torch.Tensor, length: int, kv_heads: int, channels: int, _format: str
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (page_table.shape[0], kv_heads, length, channels)
    return pages.new_empty(shape, dtype=torch.float32), pages.new_empty(shape, dtype=torch.float32)


@fake("paged_attention")
def _(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@fake("slim_attention")
def _(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)
