"""Which pages hold which sequence: the table behind one cache. Only a shared page that is written to is copied.

Sequences of one cache have equal lengths, padding included, as transformers' caches do.
"""

from __future__ import annotations

import itertools
import weakref

import torch

from torch_cpullm.kv.pool import PagePool
from torch_cpullm.ops.attention import PAGE_TOKENS


def _pages_for(tokens: int) -> int:
    return -(-tokens // PAGE_TOKENS)


class PageTable:
    """Rows of page numbers, mirrored in an int32 tensor for the ops."""

    def __init__(self, pool: PagePool, rows: list[list[int]]) -> None:
        """Take over `rows`, whose references belong to this table from now on."""
        self.pool = pool
        self.rows = rows
        self._tensor = torch.empty(0, 0, dtype=torch.int32)
        self._prepared: tuple[int, int, int] | None = None  # what all layers of a step ask for, one after the other
        # Pages go back when the table does, whoever forgets to close it; the list is shared with the finaliser.
        self._finalizer = weakref.finalize(self, _release_rows, pool, self.rows)

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return len(self.rows)

    def prepare(self, start: int, stop: int) -> None:
        """Make tokens start .. stop - 1 of every sequence writable: allocate, and copy pages that are shared.

        Raises:
            OutOfPagesError: nothing has changed then.
        """
        asked = start, stop, self.pool.shares
        if asked == self._prepared:
            return
        first, needed = start // PAGE_TOKENS, _pages_for(stop)
        missing = [max(0, needed - len(row)) for row in self.rows]
        shared = self._rows_to_copy(first, needed)
        if not shared and not any(missing):
            self._prepared = asked
            return
        fresh = iter(self.pool.allocate(len(shared) + sum(missing)))
        for row, index in shared:
            old, row[index] = row[index], next(fresh)
            self.pool.copy(old, row[index])
            self.pool.release([old])
        for row, count in zip(self.rows, missing, strict=True):
            row.extend(itertools.islice(fresh, count))
        self._changed()
        self._prepared = asked

    def _rows_to_copy(self, first: int, needed: int) -> list[tuple[list[int], int]]:
        """Rows, and where in them, whose page someone else holds too. The last holder of a page keeps it."""
        copies: list[tuple[list[int], int]] = []
        taken: dict[int, int] = {}
        for row in self.rows:
            for index in range(first, min(needed, len(row))):
                page = row[index]
                if taken.get(page, 0) < self.pool.holders(page) - 1:
                    taken[page] = taken.get(page, 0) + 1
                    copies.append((row, index))
        return copies

    def _changed(self) -> None:
        self._prepared = None
        width = max((len(row) for row in self.rows), default=0)
        if self._tensor.shape[0] != self.batch or self._tensor.shape[1] < width:
            self._tensor = torch.zeros(self.batch, max(8, 2 * width), dtype=torch.int32)
        for b, row in enumerate(self.rows):
            self._tensor[b, : len(row)] = torch.tensor(row, dtype=torch.int32)

    @property
    def tensor_BP(self) -> torch.Tensor:
        """int32 [B, P]; columns beyond a sequence's pages mean nothing."""
        return self._tensor

    def crop(self, length: int) -> None:
        """Give back the pages beyond `length` tokens."""
        self._prepared = None
        keep = _pages_for(length)
        for row in self.rows:
            self.pool.release(row[keep:])
            del row[keep:]

    def select(self, indices: list[int]) -> None:
        """Row i becomes what row indices[i] was: beams, forks, selections. Pages are shared until written."""
        chosen = [list(self.rows[index]) for index in indices]
        for row in chosen:
            self.pool.share(row)
        for row in self.rows:
            self.pool.release(row)
        self.rows[:] = chosen  # in place: the finaliser holds this list
        self._changed()

    def fork(self) -> PageTable:
        """Another table on the same pages."""
        for row in self.rows:
            self.pool.share(row)
        table = PageTable(self.pool, [list(row) for row in self.rows])
        table._changed()
        return table


def _release_rows(pool: PagePool, rows: list[list[int]]) -> None:
    for row in rows:
        pool.release(row)
