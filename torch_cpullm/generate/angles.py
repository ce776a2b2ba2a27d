"""Cosines and sines of positions, for attentions that look them up in a table of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class AngleTable:
    """Is called as a model's rotary module is.

    position   sines         cosines
    0          0   0   0     1   1   1        table_PR: one row a position, R channels turn in pairs (i, i + 1)
    1          s1  s2  s3    c1  c2  c3
    """

    table_PR: torch.Tensor

    def __call__(self, like_BTD: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cos and sin [B, T, R] of position_ids [B, T], in the dtype of `like_BTD`.

        Raises:
            IndexError: the table ends before one of the positions.
        """
        try:
            found_BTR = torch.nn.functional.embedding(position_ids, self.table_PR)
        except IndexError as error:
            raise IndexError(
                f"position_ids: expected 0 to {len(self.table_PR) - 1}, the positions that it has angles for, got "
                f"{int(position_ids.min())} to {int(position_ids.max())}; shorten the text"
            ) from error
        sin_BTA, cos_BTA = found_BTR.to(like_BTD.dtype).chunk(2, dim=-1)
        return cos_BTA.repeat_interleave(2, dim=-1), sin_BTA.repeat_interleave(2, dim=-1)

    def is_like(self, other: AngleTable) -> bool:
        """Whether both hold the same."""
        return torch.equal(self.table_PR, other.table_PR)
