"""The paged KV pool, and the transformers Cache that views it."""

from torch_cpullm.kv.cache import PagedCache
from torch_cpullm.kv.pool import LayerSpec, PagePool

__all__ = ["LayerSpec", "PagePool", "PagedCache"]
