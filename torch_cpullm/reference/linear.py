"""Packed linear layers. Quantisation is the same arithmetic as the kernels', so codes and integer sums are exact."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torch_cpullm.formats import WeightFormat

ACTIVATION_GROUP = 256  # csrc/layout/panel.h, kActivationGroup
_SYMMETRIC_STEPS = (8.0, 7.5, 8.5, 9.0, 9.5)  # csrc/drivers/pack.cpp
_MOST_MULTIPLIER = 15  # csrc/layout/panel.h
_RANGE_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)


@dataclass(frozen=True)
class DenseWeight:
    """What packed bytes stand for: value[n][k] = steps * scale[n][group of k] * column_scale[n] * multiplier[k].

    Attributes:
        steps_NK: codes minus zero points, whole numbers (or the float weight itself), float32.
        scale_NG: float32, exact also where it is a step times a multiplier; ones without groups.
        column_scale_N: float32; ones for float weights.
        multiplier_K: float32, or None.
    """

    format: WeightFormat
    steps_NK: torch.Tensor
    scale_NG: torch.Tensor
    column_scale_N: torch.Tensor
    multiplier_K: torch.Tensor | None = None

    @property
    def scaled_NK(self) -> torch.Tensor:
        """Steps times group scales: the weight without what stays outside of the sums."""
        group = self.format.group or self.steps_NK.shape[1]
        return self.steps_NK * self.scale_NG.repeat_interleave(group, 1)[:, : self.steps_NK.shape[1]]

    @property
    def value_NK(self) -> torch.Tensor:
        """The float32 weight."""
        value_NK = self.scaled_NK * self.column_scale_N[:, None]
        return value_NK if self.multiplier_K is None else value_NK * self.multiplier_K


def _absmax(x: torch.Tensor) -> torch.Tensor:
    """Along the last dimension; NaN where anything is not finite."""
    largest = x.abs().amax(dim=-1)
    return torch.where(x.isfinite().all(dim=-1), largest, torch.full_like(largest, float("nan")))


def _power_of_two_from(x: torch.Tensor) -> torch.Tensor:
    """The smallest power of two not below x; 1 for 0."""
    fraction, exponent = torch.frexp(x)
    power = torch.ldexp(torch.ones_like(x), torch.where(fraction == 0.5, exponent - 1, exponent))
    return torch.where(x == 0, torch.ones_like(x), torch.where(x.isnan(), x, power))


def _steps(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, lowest: int, highest: int) -> torch.Tensor:
    """Codes minus zero: round(x / scale + zero), ties to even, clamped; 0 where the scale is 0 or NaN."""
    usable = (scale > 0) | (scale < 0)
    code = torch.round(x / torch.where(usable, scale, torch.ones_like(scale)) + zero).clamp(lowest, highest)
    return torch.where(usable, code - zero, torch.zeros_like(x)).nan_to_num(0.0)


def _candidates(group_NGk: torch.Tensor, format: WeightFormat) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Scales and zeros [N, G, 1] to choose from, rounded to float16."""
    low, high = group_NGk.amin(-1, keepdim=True), group_NGk.amax(-1, keepdim=True)
    none = torch.zeros_like(low)
    if format.codes == "int8":
        found = [(_absmax(group_NGk)[..., None] / 127.0, none)]
    elif format.asymmetric:
        low, high, found = low.clamp(max=0.0), high.clamp(min=0.0), []
        for share in _RANGE_SHARES:
            scale = (high - low) * share / 15.0
            zero = torch.round(-low * share / scale).clamp(0.0, 15.0)
            found.append((scale, torch.where(scale > 0, zero, none)))
    else:
        return [(scale, none) for scale in _multiples(torch.where(high > -low, high, low), format.group)]
    return [(scale.half().float(), zero) for scale, zero in found]


def _multiples(peak_NG1: torch.Tensor, group: int) -> list[torch.Tensor]:
    """Scales to choose from where there are two levels, by each group's value of largest magnitude, with its sign."""
    columns, groups, _ = peak_NG1.shape
    each = ACTIVATION_GROUP // group
    blocks_NBg = torch.nn.functional.pad(peak_NG1[..., 0], (0, -groups % each)).view(columns, -1, each)
    step_NB = (blocks_NBg.abs().amax(-1) / (8.0 * _MOST_MULTIPLIER)).half().float()
    step_NG1 = step_NB.repeat_interleave(each, 1)[:, :groups, None]
    found = []
    for steps in _SYMMETRIC_STEPS:
        ratio = torch.where(step_NG1 > 0, peak_NG1 / (step_NG1 * -steps), 0.0)
        size = ratio.abs().round().clamp(1, _MOST_MULTIPLIER)
        found.append(torch.where(ratio == 0, 0.0, torch.copysign(size, ratio)) * step_NG1)
    return found


def quantize(weight_NK: torch.Tensor, format: WeightFormat) -> DenseWeight:
    """Round to nearest, as `pack` does without a multiplier and without given scales."""
    weight_NK = weight_NK.float()
    columns, depth = weight_NK.shape
    ones = torch.ones(columns, 1)
    if not format.quantized:
        kept_NK = weight_NK.bfloat16().float() if format.codes == "bf16" else weight_NK
        return DenseWeight(format, kept_NK, ones, ones[:, 0])
    highest = 127 if format.codes == "int8" else 15 if format.asymmetric else 7
    lowest = -127 if format.codes == "int8" else 0 if format.asymmetric else -8
    if not format.group:
        scale_N = _absmax(weight_NK) / 127.0
        return DenseWeight(format, _steps(weight_NK, scale_N[:, None], torch.zeros(1), lowest, highest), ones, scale_N)
    of_absmax = 127.0 if format.codes == "int8" else 8.0 * _MOST_MULTIPLIER if format.two_levels else 7.0
    column_scale_N = _power_of_two_from(_absmax(weight_NK) / of_absmax)
    missing = -depth % format.group
    padded_NK = torch.nn.functional.pad(weight_NK / column_scale_N[:, None], (0, missing))
    group_NGk = padded_NK.view(columns, -1, format.group)
    best, chosen, scales = None, None, None
    for scale, zero in _candidates(group_NGk, format):
        steps = _steps(group_NGk, scale, zero, lowest, highest)
        error = (group_NGk - steps * scale).square().sum(-1, keepdim=True)
        if best is None or chosen is None or scales is None:
            best, chosen, scales = error, steps, scale
            continue
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, steps, chosen)
        scales = torch.where(better, scale, scales)
    assert chosen is not None
    assert scales is not None
    return DenseWeight(format, chosen.reshape(columns, -1)[:, :depth], scales[..., 0], column_scale_N)


def quantize_rows(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dynamic int8 per row and group of 256: codes float32 [M, K], scales [M, groups]; NaN where not finite."""
    codes, scales = [], []
    for group_MK in x_MK.float().split(ACTIVATION_GROUP, dim=1):
        scale_M = _absmax(group_MK) / 127.0
        inverse_M = torch.where(scale_M > 1e-37, 1.0 / scale_M, torch.zeros_like(scale_M))
        codes.append(torch.round((group_MK * inverse_M[:, None]).clamp(-127, 127)).nan_to_num(127.0))
        scales.append(scale_M)
    return torch.cat(codes, dim=1), torch.stack(scales, dim=1)


def linear(x_MK: torch.Tensor, weight: DenseWeight, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    """X times the weight, plus bias: float32 [M, N], summed in float64 where sums are not integers."""
    x_MK = x_MK.float() if weight.multiplier_K is None else x_MK.float() * weight.multiplier_K
    if weight.format.activation == "int8":
        codes_MK, scale_MG = quantize_rows(x_MK)
        out_MN = torch.zeros(x_MK.shape[0], weight.steps_NK.shape[0], dtype=torch.float64)
        pairs = zip(codes_MK.split(ACTIVATION_GROUP, 1), weight.scaled_NK.split(ACTIVATION_GROUP, 1), strict=True)
        for group, (left_MK, right_NK) in enumerate(pairs):
            out_MN += scale_MG[:, group, None].double() * (left_MK.double() @ right_NK.double().T)
    else:
        rounded_MK = x_MK.bfloat16() if weight.format.activation == "bf16" else x_MK
        right_NK = weight.scaled_NK
        if weight.format.quantized:
            right_NK = right_NK.bfloat16()
        out_MN = rounded_MK.double() @ right_NK.double().T
    out_MN *= weight.column_scale_N.double()
    return (out_MN if bias_N is None else out_MN + bias_N.double()).float()
