"""What ranks make of each other's tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def summed(parts: Sequence[torch.Tensor], residual: torch.Tensor | None = None) -> torch.Tensor:
    """Residual + (parts[0] + parts[1] + ...), added in float32 in that order, rounded once.

    In the residual's dtype, where there is one, else in that of the parts. These are the bits, not an approximation.
    """
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    if residual is None:
        return total.to(parts[0].dtype)
    return (residual.float() + total).to(residual.dtype)
