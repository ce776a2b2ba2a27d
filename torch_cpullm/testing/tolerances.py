"""How far a float result may be from the exact one, from eps and the sizes of what was added up."""

from __future__ import annotations

import torch

EPS = torch.finfo(torch.float32).eps


def dot_bound(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """Bound [M, N] on a float32 dot product in any order: K eps sum |x| |w| (Higham, section 3.1), and one rounding."""
    depth = x_MK.shape[1]
    magnitude_MN = x_MK.double().abs() @ weight_NK.double().abs().T
    return ((depth + 2) * EPS * magnitude_MN + 1e-30).float()


def assert_within(got: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor | float) -> None:
    """Fail with the worst element when |got - expected| exceeds `bound` anywhere (NaN must match NaN)."""
    assert got.shape == expected.shape, f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    both_nan = got.isnan() & expected.isnan()
    excess = ((got.double() - expected.double()).abs() - bound).masked_fill(both_nan, -1.0)
    worst = excess.nan_to_num(float("inf")).flatten().argmax()
    assert bool((excess <= 0).all()), (
        f"element {int(worst)}: got {got.flatten()[worst].item()!r}, expected {expected.flatten()[worst].item()!r}, "
        f"over the bound by {excess.flatten()[worst].item():.3e}"
    )
