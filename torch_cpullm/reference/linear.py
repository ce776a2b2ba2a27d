"""Packed linear layers. Quantisation is the same arithmetic as the kernels', so codes and integer sums are exact."""

from __future__ import annotations

import torch

ACTIVATION_GROUP = 256  # csrc/layout/panel.h, kActivationGroup


def quantize_weight(weight_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 per output: integral codes float32 [N, K] in -127..127, and scales [N] = absmax / 127.

    A row with NaN or Inf has the scale NaN, so that its output says so.
    """
    scale_N = weight_NK.float().abs().amax(dim=1) / 127.0
    scale_N = torch.where(weight_NK.isfinite().all(dim=1), scale_N, torch.full_like(scale_N, float("nan")))
    exact_NK = weight_NK.float() / scale_N[:, None]
    return torch.round(exact_NK.nan_to_num(0.0)).clamp(-127, 127), scale_N  # 0 / 0: a row of zeros


def round_weight(weight_NK: torch.Tensor, format: str) -> torch.Tensor:
    """The float32 weight [N, K] that a packed one stands for."""
    if format == "int8":
        codes_NK, scale_N = quantize_weight(weight_NK)
        return codes_NK * scale_N[:, None]
    return weight_NK.bfloat16().float() if format == "bf16" else weight_NK.float()


def quantize_rows(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dynamic int8 per row and group of 256: codes float32 [M, K], scales [M, groups]; NaN where not finite."""
    codes, scales = [], []
    for group_MK in x_MK.float().split(ACTIVATION_GROUP, dim=1):
        scale_M = group_MK.abs().amax(dim=1) / 127.0
        scale_M = torch.where(group_MK.isfinite().all(dim=1), scale_M, torch.full_like(scale_M, float("nan")))
        inverse_M = torch.where(scale_M > 1e-37, 1.0 / scale_M, torch.zeros_like(scale_M))
        codes.append(torch.round(group_MK * inverse_M[:, None]).clamp(-127, 127).nan_to_num(127.0))
        scales.append(scale_M)
    return torch.cat(codes, dim=1), torch.stack(scales, dim=1)


def linear(x_MK: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None, format: str) -> torch.Tensor:
    """X times the weight in `format`, plus bias: float32 [M, N], summed in float64 where sums are not integers."""
    if format == "int8":
        codes_NK, scale_N = quantize_weight(weight_NK)
        codes_MK, scale_MG = quantize_rows(x_MK)
        out_MN = torch.zeros(x_MK.shape[0], weight_NK.shape[0], dtype=torch.float64)
        pairs = zip(codes_MK.split(ACTIVATION_GROUP, 1), codes_NK.split(ACTIVATION_GROUP, 1), strict=True)
        for group, (left_MK, right_NK) in enumerate(pairs):
            out_MN += scale_MG[:, group, None].double() * (left_MK.double() @ right_NK.double().T)
        out_MN *= scale_N.double()
    else:
        rounded_MK = x_MK.bfloat16() if format == "bf16" else x_MK
        out_MN = rounded_MK.double() @ round_weight(weight_NK, format).double().T
    return (out_MN if bias_N is None else out_MN + bias_N.double()).float()
