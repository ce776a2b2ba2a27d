"""How far a float result may be from the exact one, from eps and the sizes of what was added up."""

from __future__ import annotations

from dataclasses import replace

import torch

from torch_cpullm.formats import KvFormat
from torch_cpullm.reference import attention as attentions
from torch_cpullm.reference.attention import AttentionInputs

EPS = torch.finfo(torch.float32).eps
TINY = torch.finfo(torch.float32).tiny
DENORMAL = torch.finfo(torch.float32).smallest_normal * EPS  # the distance of two floats below TINY


def dot_bound(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """Bound [M, N] on a float32 dot product in any order: K eps sum |x| |w| (Higham, section 3.1), and one rounding.

    Below `TINY` an instruction may flush operands and products to zero (vdpbf16ps does): K and the sums of |x| and of
    |w| count how much of that there can be.
    """
    x_MK, weight_NK = x_MK.double().abs(), weight_NK.double().abs()
    depth = x_MK.shape[1]
    flushed_MN = TINY * (depth + x_MK.sum(1)[:, None] + weight_NK.sum(1)[None])
    return (depth + 2) * EPS * (x_MK @ weight_NK.T) + flushed_MN


def attention_bound(x: AttentionInputs, format: KvFormat = "f32") -> torch.Tensor:
    """Bound [B, T, H, C] on attention over the given (already rounded) keys and values, held in `format`.

    A score is C multiply-adds and three roundings off by delta = (C + 4) eps |scale| sum |q| |k|, by 4 eps of a bias,
    and, with a soft cap, by an absolute 1e-7 of it (csrc/isa/math.h). exp turns delta into a relative error of each
    weight, twice because the maximum is off as well; the sums over S add S eps, and DENORMAL each where values are that
    small. Weights below 2^-126 are flushed to zero.

    Queries and weights are rounded as csrc/kernels/attention has it: against bf16 to 8 bits of each number, so 2^-9 of
    it; against int8 to whole numbers up to 16256 of a query's largest, and to at least 8000 of what the largest weight
    of a chunk, which may be half of a power of two, times the largest value scale would be.
    """
    key_BSHC, query_BTHC = x.per_query_head(x.key_BSGC.abs()), x.query_BTHC.double().abs()
    length, largest_value = key_BSHC.shape[1], float(x.value_BSGC.abs().nan_to_num(0.0).max())
    size_BHTS = torch.einsum("bthc,bshc->bhts", query_BTHC, key_BSHC) * abs(x.scale)
    worst_BTH1 = size_BHTS.masked_fill(~x.visible_BHTS, 0.0).amax(-1).transpose(1, 2)[..., None]
    delta_BTH1 = (query_BTHC.shape[3] + 4) * EPS * worst_BTH1 + 4 * EPS * x.soft_cap
    if x.bias_BHTS is not None:
        delta_BTH1 = delta_BTH1 + 4 * EPS * x.bias_BHTS.masked_fill(~x.visible_BHTS, 0.0).abs().amax()
    size_BTHC = attentions.attention(replace(x, value_BSGC=x.value_BSGC.abs())).double()
    lost_BTHC = torch.full_like(size_BTHC, length * TINY * largest_value + (length + 16) * DENORMAL)
    if format == "bf16":
        delta_BTH1 = delta_BTH1 + 2**-9 * worst_BTH1
        lost_BTHC += 2**-9 * size_BTHC + 2 * TINY  # vdpbf16ps takes what is smaller for zero
    if format == "int8":
        keys_B1H1 = key_BSHC.sum(-1).amax(1)[:, None, :, None]
        delta_BTH1 = delta_BTH1 + 0.5 / 16256 * abs(x.scale) * query_BTHC.amax(-1, keepdim=True) * keys_B1H1
        largest_BTH1 = attentions.attention_weights(x).amax(-1).transpose(1, 2)[..., None]
        lost_BTHC += length / 8000 * largest_value * largest_BTH1
    return ((torch.expm1(2 * delta_BTH1) + (length + 16) * EPS) * size_BTHC + lost_BTHC).nan_to_num(0.0)


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
