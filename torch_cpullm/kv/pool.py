"""Pages of 64 tokens in one reserved range of addresses: allocation, reference counts, copy-on-write.

    arena   | page 0 | page 1 | page 2 | ...        one mmap of the pool's limit, NORESERVE
    page    | layer 0 | layer 1 | ...               a page number means the same 64 tokens in every layer

The range is address space, not memory: the system backs a page when it is first written. So nothing is preallocated
to a maximum length, growth copies nothing, and every page keeps its address.
"""

from __future__ import annotations

import mmap
import threading
from contextlib import suppress
from dataclasses import dataclass

import torch

from torch_cpullm import config
from torch_cpullm.errors import OutOfPagesError
from torch_cpullm.formats import KvFormat
from torch_cpullm.ops.attention import PAGE_TOKENS, layer_bytes

# Linux's value; Python names it from 3.13 on. Without it a reservation above the free memory could be refused.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)

# Of the machine's (or the container's) memory: what is left holds the weights. Address space only until written.
_DEFAULT_SHARE = 0.5


@dataclass(frozen=True)
class LayerSpec:
    """What one layer stores per token: G heads of C channels, twice, in one element format."""

    kv_heads: int
    channels: int
    format: KvFormat

    @property
    def page_bytes(self) -> int:
        """Bytes of this layer's share of a page."""
        return layer_bytes(self.kv_heads, self.channels, self.format)


def default_limit_bytes() -> int:
    """TORCH_CPULLM_KV_LIMIT, else half of the memory this process may use."""
    limit = config.kv_limit_bytes()
    if limit is not None:
        return limit
    from torch_cpullm.machine import memory_limit_bytes

    return int(memory_limit_bytes() * _DEFAULT_SHARE)


class PagePool:
    """Pages for all layers of a model. Safe to share between caches and threads."""

    def __init__(self, layers: list[LayerSpec], limit_bytes: int | None = None) -> None:
        """Reserve the address range.

        Args:
            layers: one per decoder layer, in order.
            limit_bytes: the most the pool may grow to; default: see `default_limit_bytes`.

        Raises:
            OutOfPagesError: the limit holds less than one page.
        """
        self.layers = layers
        self.page_bytes = sum(layer.page_bytes for layer in layers)
        limit = default_limit_bytes() if limit_bytes is None else limit_bytes
        self.capacity = limit // self.page_bytes
        if self.capacity < 1:
            raise OutOfPagesError(
                f"limit_bytes: a page of {PAGE_TOKENS} tokens takes {self.page_bytes} bytes, the limit is {limit}; "
                "raise TORCH_CPULLM_KV_LIMIT"
            )
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._arena = mmap.mmap(-1, self.capacity * self.page_bytes, flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # a head's share of a page is read on its own: one small page after another
            with suppress(OSError):  # a kernel without them
                self._arena.madvise(mmap.MADV_HUGEPAGE)
        self.pages = torch.frombuffer(self._arena, dtype=torch.uint8).view(self.capacity, self.page_bytes)
        self.layer_pages: list[torch.Tensor] = []
        offset = 0
        for layer in layers:
            self.layer_pages.append(self.pages[:, offset : offset + layer.page_bytes])
            offset += layer.page_bytes
        self._references: list[int] = []  # of every page handed out so far
        self._free: list[int] = []
        self.copied_pages = 0
        """Pages copied on write so far, because someone else holds them too. Appending alone copies none."""
        self.shares = 0
        """Times that pages got another holder: until it grows, a page that could be written to still can."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Say how full it is."""
        return f"PagePool({self.used_pages} of {self.capacity} pages of {self.page_bytes} bytes in use)"

    @property
    def used_pages(self) -> int:
        """Pages some sequence holds."""
        return len(self._references) - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Hand out `count` pages with one reference each, or none.

        Raises:
            OutOfPagesError: fewer are left; the pool is unchanged.
        """
        with self._lock:
            fresh = count - len(self._free)
            if len(self._references) + max(fresh, 0) > self.capacity:
                raise OutOfPagesError(
                    f"KV pool: {count} more pages of {PAGE_TOKENS} tokens asked for, "
                    f"{self.capacity - self.used_pages} of {self.capacity} left "
                    f"({self.capacity * self.page_bytes} bytes in all); "
                    "raise TORCH_CPULLM_KV_LIMIT, or generate fewer or shorter sequences at a time"
                )
            taken = [self._free.pop() for _ in range(min(count, len(self._free)))]
            while len(taken) < count:
                taken.append(len(self._references))
                self._references.append(0)
            for page in taken:
                self._references[page] = 1
            return taken

    def share(self, pages: list[int]) -> None:
        """Add a reference to each page."""
        with self._lock:
            self.shares += 1
            for page in pages:
                self._references[page] += 1

    def release(self, pages: list[int]) -> None:
        """Drop a reference to each page; those with none left are free again."""
        with self._lock:
            for page in pages:
                self._references[page] -= 1
                if self._references[page] == 0:
                    self._free.append(page)

    def copy(self, source: int, target: int) -> None:
        """Copy a page's bytes, all layers."""
        self.pages[target].copy_(self.pages[source])
        with self._lock:
            self.copied_pages += 1

    def holders(self, page: int) -> int:
        """How many sequences hold `page`; with more than one, writing to it needs a copy first."""
        return self._references[page]

    def __deepcopy__(self, memo: dict[int, object]) -> PagePool:
        """A pool is shared, never copied: its references count who uses what."""
        return self
