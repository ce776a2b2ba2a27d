"""The operations on single rows between the products: norm, rope, gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from torch_cpullm.ops.library import fake, kernels

Activation = Literal["silu", "gelu_tanh", "gelu_erf", "relu"]


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """X [..., D] / sqrt(mean(x^2) + eps) * (weight + offset), in float32 inside, x's dtype outside.

    Source: Zhang and Sennrich 2019, equation 4; offset 1 is for zero-centred gains.
    """
    out: torch.Tensor = kernels.rms_norm(x, weight_D, eps, offset)
    return out


def layer_norm(
    x: torch.Tensor, weight_D: torch.Tensor, bias_D: torch.Tensor | None = None, eps: float = 1e-5
) -> torch.Tensor:
    """(X [..., D] - mean) / sqrt(variance + eps) * weight + bias, in float32 inside, x's dtype outside.

    Source: Ba, Kiros and Hinton 2016, equation 3. The bias has the weight's dtype.
    """
    out: torch.Tensor = kernels.layer_norm(x, weight_D, bias_D, eps)
    return out


def rope(x_BTHC: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor, *, pairs: bool = False) -> torch.Tensor:
    """Rotate the first R channels of every head, half-split pairs (i, i + R/2). Source: RoFormer, section 3.4.2.

    Args:
        x_BTHC: queries or keys.
        cos_BTR: as the model computes them, [B or 1, T, R], R even and at most C; serves every rope scaling.
        sin_BTR: likewise.
        pairs: rotate pairs (i, i + 1) for even i, as RoFormer has them.
    """
    out: torch.Tensor = kernels.rope(x_BTHC, cos_BTR, sin_BTR, pairs)
    return out


def gated(gate: torch.Tensor, up: torch.Tensor | None, activation: Activation) -> torch.Tensor:
    """activation(gate) * up, same shape (Shazeer 2020, GLU variants); activation(gate) where up is None."""
    out: torch.Tensor = kernels.gated(gate, up, activation)
    return out


def sum_parts(parts: Sequence[torch.Tensor], residual: torch.Tensor | None = None) -> torch.Tensor:
    """Residual + (parts[0] + parts[1] + ...), all of one shape: in float in that order, rounded once.

    The result has the residual's dtype, where there is one, else that of the parts. Ranks sum each other's parts so.
    """
    out: torch.Tensor = kernels.sum_parts(list(parts), residual)
    return out


@fake("rms_norm")
def _(x: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@fake("layer_norm")
def _(x: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@fake("rope")
def _(x: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@fake("gated")
def _(gate: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@fake("sum_parts")
def _(parts: Sequence[torch.Tensor], residual: torch.Tensor | None) -> torch.Tensor:
    return torch.empty_like(parts[0] if residual is None else residual, memory_format=torch.contiguous_format)
