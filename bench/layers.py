"""Layers of a paged cache as a model has them: pages of all layers side by side, more than a CPU's caches hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
    layers: int

    def __str__(self) -> str:
        """As tables show it."""
        return f"{self.name}: {self.heads}/{self.kv_heads} heads of {self.channels}"

    @property
    def scale(self) -> float:
        """Of the scores."""
        return float(self.channels**-0.5)


class Layers:
    """All layers (or `count`) of a model's cache, for so many batches of sequences that no CPU's cache holds them."""

    def __init__(
        self, shape: Shape, batch: int, length: int, tokens: int, format: KvFormat, count: int | None = None
    ) -> None:
        """Fill the pool with random tokens; the views describe calls with `tokens` new ones at the end.

        Each of `batch` sequences has `length` tokens. With `count`, there is one batch of them.
        """
        spec = LayerSpec(shape.kv_heads, shape.channels, format)
        pages = -(-length // PAGE_TOKENS)
        self.token_bytes = batch * spec.page_bytes / PAGE_TOKENS
        self.count = count or shape.layers
        batch_bytes = self.count * spec.page_bytes * batch * pages
        batches = 1 if count else max(2, -(-cold_bytes() // batch_bytes))
        self.pool = PagePool([spec] * self.count, limit_bytes=batches * batch_bytes)
        empty = torch.zeros(batch, dtype=torch.int32)
        key, value = torch.randn(2, batch, length, shape.kv_heads, shape.channels).unbind()
        self.views = []
        for _ in range(batches):
            table_BP = torch.tensor(self.pool.allocate(batch * pages), dtype=torch.int32).view(batch, pages)
            for layer in self.pool.layer_pages:
                kv = KvPages(layer, table_BP, empty, shape.kv_heads, format)
                kv_append(kv, key, value)
                self.views.append(dataclasses.replace(kv, past_B=torch.full_like(empty, length - tokens)))

    def at(self, past: int) -> list[list[KvPages]]:
        """For each batch the views of all layers, with so many tokens before a call."""
        views = [dataclasses.replace(kv, past_B=torch.full_like(kv.past_B, past)) for kv in self.views]
        return [views[i : i + self.count] for i in range(0, len(views), self.count)]

    def uneven(self, past: Sequence[int]) -> list[list[KvPages]]:
        """The same pages shared out to sequences of other lengths, before a call with one token each."""
        counts = [-(-(tokens + 1) // PAGE_TOKENS) for tokens in past]
        past_B = torch.tensor(past, dtype=torch.int32)
        found = []
        for views in self.at(0):
            pages = views[0].table_BP.flatten()
            if sum(counts) > len(pages):
                raise ValueError(f"past: expected at most {len(pages)} pages in all, got {sum(counts)}")
            rows = pages[: sum(counts)].split(counts)
            table_BP = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=int(pages[0]))
            found.append([dataclasses.replace(kv, table_BP=table_BP, past_B=past_B) for kv in views])
        return found

    def bytes_of(self, tokens: int) -> int:
        """Codes and scales of so many tokens of a batch's sequences, in all layers."""
        return int(self.token_bytes * self.count * tokens)
