"""Norm, rope and gate."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """X / sqrt(mean(x^2) + eps) * (weight + offset) over the last dimension, in float64, returned in x's dtype."""
    wide = x.double()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (scaled * (weight_D.double() + offset)).to(x.dtype)


def rope(x_BTHC: torch.Tensor, cos_BTR: torch.Tensor, sin_BTR: torch.Tensor) -> torch.Tensor:
    """Rotate the first R channels, pairs (i, i + R/2)."""
    rotary = cos_BTR.shape[-1]
    turned, rest = x_BTHC[..., :rotary].double(), x_BTHC[..., rotary:].double()
    low, high = turned.chunk(2, dim=-1)
    cos, sin = cos_BTR.double().unsqueeze(2), sin_BTR.double().unsqueeze(2)
    rotated = turned * cos + torch.cat((-high, low), dim=-1) * sin
    return torch.cat((rotated, rest), dim=-1).to(x_BTHC.dtype)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(gate) * up in float64."""
    functions = {
        "silu": torch.nn.functional.silu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "gelu_erf": torch.nn.functional.gelu,
    }
    return (functions[activation](gate.double()) * up.double()).to(gate.dtype)
