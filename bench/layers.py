"""Layers of a paged cache as a model has them: pages of all layers side by side, in memory that no cache holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from torch_cpullm.formats import KvFormat
from torch_cpullm.kv import LayerSpec, PagePool
from torch_cpullm.machine.probe import cold_bytes
from torch_cpullm.ops.attention import PAGE_TOKENS, KvPages, kv_append


@dataclass(frozen=True)
class Shape:
    """Heads of a model's attention."""

    name: str
    heads: int
    kv_heads: int
    channels: int

    def __str__(self) -> str:
        """As tables show it."""
        return f"{self.name}: {self.heads}/{self.kv_heads} heads of {self.channels}"

    @property
    def scale(self) -> float:
        """Of the scores."""
        return float(self.channels**-0.5)


class Layers:
    """`count` layers (default: more than the last-level cache holds) of `batch` sequences of `length` random tokens."""

    def __init__(
        self, shape: Shape, batch: int, length: int, tokens: int, format: KvFormat, count: int | None = None
    ) -> None:
        """Fill the pool; the views describe calls with `tokens` new tokens at the end."""
        spec = LayerSpec(shape.kv_heads, shape.channels, format)
        pages = -(-length // PAGE_TOKENS)
        self.token_bytes = batch * spec.page_bytes / PAGE_TOKENS
        layers = count or max(2, -(-cold_bytes() // (batch * pages * spec.page_bytes)))
        self.pool = PagePool([spec] * layers, limit_bytes=layers * spec.page_bytes * batch * pages)
        table_BP = torch.tensor(self.pool.allocate(batch * pages), dtype=torch.int32).view(batch, pages)
        empty = torch.zeros(batch, dtype=torch.int32)
        key, value = torch.randn(2, batch, length, shape.kv_heads, shape.channels).unbind()
        self.views = []
        for layer in self.pool.layer_pages:
            kv = KvPages(layer, table_BP, empty, shape.kv_heads, format)
            kv_append(kv, key, value)
            self.views.append(dataclasses.replace(kv, past_B=torch.full_like(empty, length - tokens)))

    def at(self, past: int) -> list[KvPages]:
        """Views with so many tokens before a call."""
        return [dataclasses.replace(kv, past_B=torch.full_like(kv.past_B, past)) for kv in self.views]

    def bytes_of(self, tokens: int) -> int:
        """Codes and scales of so many tokens of all sequences, in one layer."""
        return int(self.token_bytes * tokens)
