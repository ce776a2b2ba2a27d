"""What a module computes, found by computing: a norm is RMS because its output equals the formula, not by its name."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torch_cpullm.detect.structure import ActivationName

# Two orders above float32's rounding of these short sums, far below the difference of any two candidate formulas.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class NormProbe:
    """x / sqrt(mean(x^2) + eps) * (weight + offset); `centred`: (x - mean) / sqrt(variance + eps) * weight + bias."""

    eps: float
    offset: float
    width: int
    centred: bool


def probe_norm(module: nn.Module) -> NormProbe | None:
    """Return the norm's numbers when `module` computes an RMS norm or a layer norm with a gain, else None.

    The candidates for eps are the module's own scalar attributes; which one it is, and whether the gain or the row is
    zero-centred, is decided by comparing outputs on inputs small enough for eps to matter.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or next(module.children(), None) is not None:
        return None
    candidates = {value for value in vars(module).values() if isinstance(value, float) and 0.0 <= value < 1e-2}
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(3, weight.numel(), generator=generator) + 0.3) * torch.tensor([[1.0], [1e-2], [1e-3]])
    with torch.no_grad():
        try:
            got = module(x.to(weight.dtype)).float()
        except (RuntimeError, TypeError, ValueError):
            return None
        x, gain = x.to(weight.dtype).float(), weight.float()
        tolerance = _TOLERANCE if weight.dtype == torch.float32 else 2e-2
        bias = getattr(module, "bias", None)
        shift = bias.float() if isinstance(bias, torch.Tensor) and bias.shape == weight.shape else torch.zeros(())
        found = []
        for eps, (offset, centred) in itertools.product(sorted(candidates), ((0.0, False), (1.0, False), (0.0, True))):
            row = x - x.mean(-1, keepdim=True) if centred else x
            expected = row * torch.rsqrt(row.pow(2).mean(-1, keepdim=True) + eps) * (gain + offset)
            expected = expected + shift if centred else expected
            error = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
            found.append((error, eps, offset, centred))
    best = min(found, default=None)
    if best is None or not best[0] <= tolerance:
        return None
    return NormProbe(eps=best[1], offset=best[2], width=weight.numel(), centred=best[3])


def probe_activation(activation: object) -> ActivationName | None:
    """Name the function that `activation` computes, or None when it is none of those the kernels have."""
    if not callable(activation):
        return None
    x = torch.linspace(-6.0, 6.0, 97)
    with torch.no_grad():
        try:
            got = activation(x)
        except (RuntimeError, TypeError, ValueError):
            return None
    if not isinstance(got, torch.Tensor) or got.shape != x.shape:
        return None
    known: dict[ActivationName, torch.Tensor] = {
        "silu": torch.nn.functional.silu(x),
        "gelu_tanh": torch.nn.functional.gelu(x, approximate="tanh"),
        "gelu_erf": torch.nn.functional.gelu(x),
        "relu": torch.nn.functional.relu(x),
    }
    for name, expected in known.items():
        if torch.allclose(got, expected, atol=1e-6, rtol=1e-6):
            return name
    return None


def probe_linear(module: nn.Module) -> bool:
    """Whether it is a Linear that may be packed: the plain one, or a subclass that computes the same in other words.

    A subclass is tried on small weights of its own. One that inherits forward has another reason to be, such as
    somebody who reads its weight past it; one that keeps more than a Linear does may use it.
    """
    kind: Any = type(module)
    if not isinstance(module, nn.Linear):
        return False
    if kind is nn.Linear:
        return True
    known = {*vars(nn.Linear(1, 1)), "_is_hf_initialized"}
    tensors = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    if kind.forward is nn.Linear.forward or not set(vars(module)) <= known or not tensors <= {"weight", "bias"}:
        return False
    generator = torch.Generator().manual_seed(0)
    twin: Any = kind.__new__(kind)
    nn.Module.__init__(twin)
    twin.in_features, twin.out_features = 5, 3
    twin.weight = nn.Parameter(torch.randn(3, 5, generator=generator))
    has_bias = getattr(module, "bias", None) is not None
    bias_N = nn.Parameter(torch.randn(3, generator=generator)) if has_bias else None
    twin.register_parameter("bias", bias_N)
    x_MK = torch.randn(2, 5, generator=generator)
    with torch.no_grad():
        try:
            got = twin(x_MK)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
        expected_MN = nn.functional.linear(x_MK, twin.weight, twin.bias)
    same = isinstance(got, torch.Tensor) and got.shape == expected_MN.shape
    return same and torch.allclose(got, expected_MN, atol=_TOLERANCE)


def probe_angles(table: object) -> bool:
    """Whether it is a table [positions, R] of the sines of all angles, then their cosines, of one row a position."""
    if not isinstance(table, torch.Tensor) or table.dim() != 2 or table.shape[0] < 2 or table.shape[1] % 2:
        return False
    sin_PR, cos_PR = table[:64].float().chunk(2, dim=-1)
    circle = torch.allclose(sin_PR**2 + cos_PR**2, torch.ones(()), atol=2e-2)  # in bfloat16
    begins = not bool(sin_PR[0].any()) and bool((cos_PR[0] == 1).all())
    return circle and begins and bool((sin_PR[1] > 0).all())


def probe_rope(module: nn.Module) -> bool | None:
    """Whether the angles that `module` gives stand twice side by side, (i, i + 1), and not at (i, i + R/2).

    None when it is no module that turns positions into cos and sin.
    """
    if not isinstance(getattr(module, "inv_freq", None), torch.Tensor):
        return None
    with torch.no_grad():
        try:
            cos_11R, sin_11R = module(torch.zeros(1, 1, 1), position_ids=torch.ones(1, 1, dtype=torch.long))
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return None
    for table in (cos_11R, sin_11R):
        if not isinstance(table, torch.Tensor) or table.dim() != 3 or table.shape[-1] % 2:
            return None
    angles = torch.stack((cos_11R.flatten(), sin_11R.flatten()))
    low, high = angles.chunk(2, dim=-1)
    return bool((angles[:, ::2] == angles[:, 1::2]).all()) and not bool((low == high).all())
