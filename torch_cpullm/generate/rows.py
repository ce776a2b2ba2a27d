"""Tensors that grow by a column with each token."""

from __future__ import annotations

import torch

_SPARE = 1024  # columns, where the longest text is not known or far away


class Rows:
    """A tensor [B, n] that grows by a column at a time, in memory that was made for more."""

    def __init__(self, start_BN: torch.Tensor, longest: int | None) -> None:
        """Copy `start_BN`; `longest` is what n will be at most, if that is known."""
        self.length = start_BN.shape[1]
        columns = self.length + _SPARE if longest is None else min(longest, self.length + _SPARE)
        self._memory_BM = start_BN.new_empty(start_BN.shape[0], max(columns, self.length))
        self._memory_BM[:, : self.length] = start_BN

    def append(self, column_B: torch.Tensor | int) -> None:
        """Add a column."""
        if self.length == self._memory_BM.shape[1]:
            spare_BM = self._memory_BM.new_empty(len(self._memory_BM), max(_SPARE, self.length))
            self._memory_BM = torch.cat([self._memory_BM, spare_BM], dim=1)
        self._memory_BM[:, self.length] = column_B
        self.length += 1

    @property
    def value(self) -> torch.Tensor:
        """[B, n], a view: its values stay, later columns are beyond it."""
        return self._memory_BM[:, : self.length]
