"""The paged KV pool's ops and SlimAttention over it. Layout of a page: csrc/layout/kv_page.h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from torch_cpullm.formats import KvFormat
from torch_cpullm.ops.library import fake, kernels

PAGE_TOKENS: int = kernels.kv_page_tokens()


class KvPages(NamedTuple):
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


@dataclass(frozen=True)
class ScoreRules:
    """What changes a score or hides it, besides causality. Whatever is None or 0 is not there.

    Attributes:
        mask: [B or 1, H or 1, T, S >= past + T]; bool, True attends, or float32, added to the scores (-inf hides). It
            stands instead of causality. A row that sees nothing gives zeros.
        tree_BT: int64; bit j of row t shows it query token j, T at most 64; all of the past is seen. It stands instead
            of causality: the ancestors of each node of a token tree (SpecInfer, arXiv 2305.09781, section 4.2).
        sinks_H: scores of a token that takes part in the softmax and has no value (gpt-oss).
        slopes_H: ALiBi (arXiv 2108.12409): slope * (token - own token) is added.
        window: a row sees that many tokens up to its own.
        soft_cap: scores become soft_cap * tanh(score / soft_cap), before all else.
    """

    mask: torch.Tensor | None = None
    tree_BT: torch.Tensor | None = None
    sinks_H: torch.Tensor | None = None
    slopes_H: torch.Tensor | None = None
    window: int = 0
    soft_cap: float = 0.0


CAUSAL = ScoreRules()


def paged_attention(query_BTHC: torch.Tensor, kv: KvPages, scale: float, rules: ScoreRules = CAUSAL) -> torch.Tensor:
    """Attend from T query tokens to the `past + T` cached ones; their own keys and values must be appended already.

    SlimAttention (arXiv 2407.07304, section 2.2) up to `slim_tokens()`, FlashAttention (arXiv 2205.14135) beyond, with
    the same bits. Codes are multiplied as they lie in the pages.

    Args:
        query_BTHC: H a multiple of `kv.kv_heads`.
        kv: the pool's layer.
        scale: multiplies the scores.
        rules: masks and the like; default: causal.

    Returns:
        [B, T, H, C] in the query's dtype.

    Raises:
        ValueError, TypeError, IndexError: shapes, types or page numbers that do not fit, naming the argument.
    """
    out: torch.Tensor = kernels.paged_attention(
        query_BTHC,
        kv.pages,
        kv.table_BP,
        kv.past_B,
        rules.mask,
        rules.tree_BT,
        rules.sinks_H,
        rules.slopes_H,
        kv.kv_heads,
        kv.format,
        scale,
        rules.soft_cap,
        rules.window,
    )
    return out


def slim_attention(
    query_BTHC: torch.Tensor,
    key_BSGC: torch.Tensor,
    value_BSGC: torch.Tensor,
    scale: float,
    rules: ScoreRules = CAUSAL,
) -> torch.Tensor:
    """The same over dense keys and values: queries are the last T of the S tokens.

    Lays the keys and values out as pages first, which costs one pass over them: in bf16 if that is what keys are, else
    in float32. `rules` without a tree.
    """
    if rules.tree_BT is not None:
        raise ValueError("rules: slim_attention takes no tree; append to a paged cache, or pass it as a mask")
    out: torch.Tensor = kernels.slim_attention(
        query_BTHC,
        key_BSGC,
        value_BSGC,
        rules.mask,
        rules.sinks_H,
        rules.slopes_H,
        scale,
        rules.soft_cap,
        rules.window,
    )
    return out


def set_slim_tokens(tokens: int) -> None:
    """Query tokens up to this place in their sequence go by whole score rows, those behind by running maxima.

    For the whole process; a matter of speed only, measured by `torch_cpullm.tune`. 0: all by running maxima.
    """
    kernels.set_slim_tokens(tokens)


def slim_tokens() -> int:
    """What `set_slim_tokens` set last, else the built-in default."""
    return int(kernels.slim_tokens())


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
