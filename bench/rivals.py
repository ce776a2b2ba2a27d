"""What torch itself offers for the job of a linear layer, by weight format: each call does the whole job it can do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear

from bench.contest import Call, copies_beyond_cache, rotated

GROUP = 32


def _int8_pack(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> Call:
    scale_N = weight_NK.abs().amax(dim=1).div(127)
    codes = copies_beyond_cache((weight_NK / scale_N[:, None]).round().to(torch.int8))
    return rotated(lambda w: torch.ops.aten._weight_int8pack_mm(x_MK, w, scale_N), codes)


def _int8_mm(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> Call:
    scale_N = weight_NK.abs().amax(dim=1).float().div(127)
    codes = copies_beyond_cache((weight_NK.float() / scale_N[:, None]).round().to(torch.int8))

    def quantised(w: torch.Tensor) -> torch.Tensor:
        scale_M1 = x_MK.abs().amax(dim=1, keepdim=True).float().div(127)
        x_i8_MK = (x_MK / scale_M1).round().to(torch.int8)
        return (torch.ops.aten._int_mm(x_i8_MK, w.t()) * (scale_M1 * scale_N)).to(x_MK.dtype)

    return rotated(quantised, codes)


def _int8_mm_bare(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> Call:
    x_i8_MK = (x_MK / x_MK.abs().amax().div(127)).round().to(torch.int8)
    codes = copies_beyond_cache((weight_NK / weight_NK.abs().amax().div(127)).round().to(torch.int8))
    return rotated(lambda w: torch.ops.aten._int_mm(x_i8_MK, w.t()), codes)


def _int4_pack(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> Call:
    columns, depth = weight_NK.shape
    group = weight_NK.view(columns, -1, GROUP)
    scale = group.abs().amax(-1, keepdim=True).div(7)
    codes = ((group / scale).round() + 8).clamp(0, 15).to(torch.int32).view(columns, depth)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scale_zero = torch.stack((scale[..., 0].T, torch.zeros_like(scale[..., 0].T)), dim=-1).contiguous()
    return rotated(
        lambda w: torch.ops.aten._weight_int4pack_mm_for_cpu(x_MK, w, GROUP, scale_zero), copies_beyond_cache(packed)
    )


def _bf16(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> Call:
    return rotated(lambda w: linear(x_MK, w), copies_beyond_cache(weight_NK))


_ALL: dict[str, dict[str, Callable[[torch.Tensor, torch.Tensor], Call]]] = {
    "bf16": {"F.linear bf16": _bf16},
    "int8": {"_weight_int8pack_mm": _int8_pack, "_int_mm with scales": _int8_mm, "_int_mm, no scales": _int8_mm_bare},
    "int4": {"_weight_int4pack_mm": _int4_pack},
}


def rivals_of(codes: str, x_MK: torch.Tensor, weight_NK: torch.Tensor) -> dict[str, Call]:
    """Torch's operators for weights of `codes`, x and weight bf16; `_int_mm` needs 17 rows at least.

    With quantised weights and many rows F.linear in bf16 is a rival too: nobody is forced to quantise.
    """
    found = {}
    rows = len(x_MK)
    for name, make in (_ALL[codes] | (_ALL["bf16"] if rows >= 64 else {})).items():
        if (name.startswith("_int_mm") and rows < 64) or (name == "_weight_int8pack_mm" and rows >= 64):
            continue
        if name == "_weight_int4pack_mm" and rows >= 64:
            continue
        found[name] = make(x_MK, weight_NK)
    return found
