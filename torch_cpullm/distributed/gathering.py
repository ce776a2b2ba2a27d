"""Outputs that ranks have some of each, brought together."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torch_cpullm.ops.comm import all_gather
from torch_cpullm.plan.shard import Span


@dataclass(frozen=True)
class Gathering:
    """Outputs of a linear layer that the ranks of a group share: rank i has those of `spans[i]`."""

    group: int
    spans: tuple[Span, ...]

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """This rank's outputs [..., n] -> those of all [..., N]; all ranks call it."""
        most = max(len(span) for span in self.spans)
        padded = own if own.shape[-1] == most else torch.nn.functional.pad(own, (0, most - own.shape[-1]))
        of_all = all_gather(padded, self.group)
        return torch.cat([outputs[..., : len(span)] for outputs, span in zip(of_all, self.spans, strict=True)], dim=-1)
