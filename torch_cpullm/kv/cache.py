"""The paged pool as a transformers Cache: what `generate()` passes from step to step."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicCache

from torch_cpullm.kv.pool import LayerSpec, PagePool
from torch_cpullm.kv.table import PageTable
from torch_cpullm.ops import attention as ops
from torch_cpullm.ops.attention import KvPages
from torch_cpullm.ops.layers import KvLayers


class CacheState:
    """What a cache and its layers share.

    Apart from both, so that they do not refer to each other in a circle: a cache that nobody uses any more gives its
    pages back at once, not when the garbage collector comes by.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.table: PageTable | None = None
        self._past = torch.empty(0, dtype=torch.int32)
        self._past_length = 0

    def table_for(self, batch: int, length: int) -> PageTable:
        """The table, made at the first use. Raises ValueError when it holds another number of sequences."""
        if self.table is None or (self.table.batch != batch and length == 0):
            self.table = PageTable(self.pool, [[] for _ in range(batch)])
        if self.table.batch != batch:
            raise ValueError(
                f"past_key_values: this cache holds {self.table.batch} sequences, the input has {batch}; "
                "use batch_repeat_interleave or batch_select_indices first"
            )
        return self.table

    def past_tensor(self, batch: int, length: int) -> torch.Tensor:
        """int32 [B], all `length`; made once a step and shared by the layers."""
        if self._past_length != length or len(self._past) != batch:
            self._past, self._past_length = torch.full((batch,), length, dtype=torch.int32), length
        return self._past


class PagedLayer(CacheLayerMixin):
    """One layer's view: its share of the pages and how many tokens it holds."""

    is_sliding = False  # windows are in the mask; all tokens stay
    is_croppable = True
    is_compileable = False

    def __init__(self, state: CacheState, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.state = state
        self.index = index
        self.length = 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: pages come when tokens do."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and return all keys and values dense, [B, G, S, C]: for attention that is not one of our blocks."""
        tokens, channels = key_states.shape[2], key_states.shape[3]
        kv = self.open(key_states.shape[0], tokens)
        ops.kv_append(kv, key_states.transpose(1, 2), value_states.transpose(1, 2))
        self.close(tokens)
        key, value = ops.kv_gather(kv, self.length, channels)
        return key.to(key_states.dtype), value.to(value_states.dtype)

    def open(self, batch: int, tokens: int) -> KvPages:
        """Make room for `tokens` more per sequence and describe the layer for an op; `close` once they are written.

        Raises:
            OutOfPagesError: the pool is full; the cache is as it was.
            ValueError: the cache holds another number of sequences.
        """
        table = self.state.table_for(batch, self.length)
        table.prepare(self.length, self.length + tokens)
        pool = self.state.pool
        spec, pages = pool.layers[self.index], pool.layer_pages[self.index]
        return KvPages(pages, table.tensor_BP, self.state.past_tensor(batch, self.length), spec.kv_heads, spec.format)

    def close(self, tokens: int) -> None:
        """Count the tokens written since `open`."""
        self.length += tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what a query of that length may see."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def get_max_length(self) -> int:
        """-1: no maximum but the pool's."""
        return -1

    # Whole-cache operations, done once by PagedCache: the table is common to all layers.
    def crop(self, tokens_to_remove: int) -> None:
        """See PagedCache.crop."""
        raise NotImplementedError("crop the PagedCache, not one of its layers")

    def reset(self) -> None:
        """See PagedCache.reset."""
        raise NotImplementedError("reset the PagedCache, not one of its layers")


class PagedCache(DynamicCache):
    """A DynamicCache whose layers are views of a page pool. Beams and forks share pages; crop frees them."""

    def __init__(self, specs: list[LayerSpec], pool: PagePool | None = None, limit_bytes: int | None = None) -> None:
        """Start empty.

        Args:
            specs: one per decoder layer.
            pool: the pool to take pages from; default: one of its own, freed with the cache.
            limit_bytes: the most that pool may grow to; default: see `default_limit_bytes`.
        """
        super().__init__()
        self.layer_class_to_replicate = None
        self.state = CacheState(pool or PagePool(specs, limit_bytes))
        self.paged_layers = [PagedLayer(self.state, index) for index in range(len(specs))]
        self.layers = list(self.paged_layers)  # the same objects, as transformers types them

    @property
    def pool(self) -> PagePool:
        """The pool the pages come from."""
        return self.state.pool

    def open(self, batch: int, tokens: int) -> KvLayers:
        """As each layer's `open`, for all of them at once; the layers must hold equally many heads and tokens."""
        first = self.paged_layers[0].open(batch, tokens)
        return KvLayers(self.pool.layer_pages, *first[1:])

    def close(self, tokens: int) -> None:
        """Count the tokens written since `open`, in every layer."""
        for layer in self.paged_layers:
            layer.close(tokens)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -tokens_to_remove tokens (transformers 5 passes a negative number)."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove: expected 0 or a negative number, got {tokens_to_remove}")
        for layer in self.paged_layers:
            layer.length = max(0, layer.length + tokens_to_remove)
        if self.state.table:
            self.state.table.crop(max(layer.length for layer in self.paged_layers))

    def reset(self) -> None:
        """Forget everything."""
        self.crop(-self.get_seq_length())

    def _select(self, indices: list[int]) -> None:
        if self.state.table:
            self.state.table.select(indices)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Sequence i continues what sequence beam_idx[i] was."""
        self._select(beam_idx.tolist())

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the sequences at `indices` (numbers, or a boolean mask)."""
        self._select((indices.nonzero().flatten() if indices.dtype == torch.bool else indices).tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence `repeats` times."""
        if self.state.table:
            self._select([row for row in range(self.state.table.batch) for _ in range(repeats)])

    def __deepcopy__(self, memo: dict[int, Any]) -> PagedCache:
        """A fork: same tokens, shared pages, copied only where one of the two writes."""
        fork = PagedCache(self.pool.layers, self.pool)
        memo[id(self)] = fork
        fork.state.table = self.state.table.fork() if self.state.table else None
        for mine, theirs in zip(fork.paged_layers, self.paged_layers, strict=True):
            mine.length = theirs.length
        return fork

    def __reduce__(self) -> Any:
        raise TypeError(
            "PagedCache: a cache cannot be pickled; it is a view of this process's memory. Pickle the token ids."
        )
