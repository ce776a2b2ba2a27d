"""A small pool of shuffled pages, for tests and benches of the KV ops."""

from __future__ import annotations

import torch

from torch_cpullm.formats import KvFormat
from torch_cpullm.ops.attention import PAGE_TOKENS, KvPages, kv_append, layer_bytes


def empty_pages(batch: int, tokens: int, kv_heads: int, channels: int, format: KvFormat) -> KvPages:
    """Room for `tokens` tokens of `batch` sequences, pages in shuffled order and poisoned with 0xFF (NaN as floats)."""
    each = -(-tokens // PAGE_TOKENS)
    pages = torch.full((batch * each + 2, layer_bytes(kv_heads, channels, format)), 255, dtype=torch.uint8)
    order = torch.randperm(batch * each, generator=torch.Generator().manual_seed(batch * 1000 + tokens))
    table_BP = (order + 1).to(torch.int32).view(batch, each)
    return KvPages(pages, table_BP, torch.zeros(batch, dtype=torch.int32), kv_heads, format)


def filled_pages(key_BSGC: torch.Tensor, value_BSGC: torch.Tensor, past_B: torch.Tensor, format: KvFormat) -> KvPages:
    """Pages that hold the given tokens, described with `past_B` tokens before the call to come."""
    batch, tokens, kv_heads, channels = key_BSGC.shape
    kv = empty_pages(batch, tokens, kv_heads, channels, format)
    kv_append(kv, key_BSGC, value_BSGC)
    return KvPages(kv.pages, kv.table_BP, past_B.to(torch.int32), kv_heads, format)
