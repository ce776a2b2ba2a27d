"""Norm, rope and gate."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """X / sqrt(mean(x^2) + eps) * (weight + offset) over the last dimension, in float64, returned in x's dtype."""
    wide = x.double()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (scaled * (weight_D.double() + offset)).to(x.dtype)


def layer_norm(
    x: torch.Tensor, weight_D: torch.Tensor, bias_D: torch.Tensor | None = None, eps: float = 1e-5
) -> torch.Tensor:
    """(X - mean) / sqrt(variance + eps) * weight + bias over the last dimension, in float64, returned in x's dtype."""
    centred = x.double() - x.double().mean(-1, keepdim=True)
    scaled = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * weight_D.double()
    return (scaled if bias_D is None else scaled + bias_D.double()).to(x.dtype)


def rope(x_BTHC: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor, *, pairs: bool = False) -> torch.Tensor:
    """Rotate the first R channels, pairs (i, i + R/2), or (i, i + 1) for even i."""
    rotary = cos_BTR.shape[-1]
    turned, rest = x_BTHC[..., :rotary].double(), x_BTHC[..., rotary:].double()
    cos, sin = cos_BTR.double().unsqueeze(2), sin_BTR.double().unsqueeze(2)
    if pairs:
        quarter = torch.stack((-turned[..., 1::2], turned[..., ::2]), dim=-1).flatten(-2)
    else:
        low, high = turned.chunk(2, dim=-1)
        quarter = torch.cat((-high, low), dim=-1)
    rotated = turned * cos + quarter * sin
    return torch.cat((rotated, rest), dim=-1).to(x_BTHC.dtype)


def gated(gate: torch.Tensor, up: torch.Tensor | None, activation: str) -> torch.Tensor:
    """activation(gate) * up in float64; activation(gate) where up is None."""
    functions = {
        "silu": torch.nn.functional.silu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "gelu_erf": torch.nn.functional.gelu,
        "relu": torch.nn.functional.relu,
    }
    opened = functions[activation](gate.double())
    return (opened if up is None else opened * up.double()).to(gate.dtype)
