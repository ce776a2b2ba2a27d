"""What torch itself offers for the job of a linear layer, by weight format: each call does the whole job it can do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear

from bench.contest import Call, copies_beyond_cache, rotated

GROUP = 32
Bind = Callable[[torch.Tensor], Call]
"""From x [M, K] to a call that multiplies it with the next copy of the weight."""


def _int8_pack(weight_NK: torch.Tensor) -> Bind:
    scale_N = weight_NK.abs().amax(dim=1).div(127)
    codes = copies_beyond_cache((weight_NK / scale_N[:, None]).round().to(torch.int8))
    return lambda x_MK: rotated(lambda w: torch.ops.aten._weight_int8pack_mm(x_MK, w, scale_N), codes)


def _int8_mm(weight_NK: torch.Tensor) -> Bind:
    scale_N = weight_NK.abs().amax(dim=1).float().div(127)
    codes = copies_beyond_cache((weight_NK.float() / scale_N[:, None]).round().to(torch.int8))

    def quantised(x_MK: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        scale_M1 = x_MK.abs().amax(dim=1, keepdim=True).float().div(127)
        x_i8_MK = (x_MK / scale_M1).round().to(torch.int8)
        return (torch.ops.aten._int_mm(x_i8_MK, w.t()) * (scale_M1 * scale_N)).to(x_MK.dtype)

    return lambda x_MK: rotated(lambda w: quantised(x_MK, w), codes)


def _int8_mm_bare(weight_NK: torch.Tensor) -> Bind:
    codes = copies_beyond_cache((weight_NK / weight_NK.abs().amax().div(127)).round().to(torch.int8))

    def bind(x_MK: torch.Tensor) -> Call:
        x_i8_MK = (x_MK / x_MK.abs().amax().div(127)).round().to(torch.int8)
        return rotated(lambda w: torch.ops.aten._int_mm(x_i8_MK, w.t()), codes)

    return bind


def _int4_pack(weight_NK: torch.Tensor) -> Bind:
    columns, depth = weight_NK.shape
    group = weight_NK.view(columns, -1, GROUP)
    scale = group.abs().amax(-1, keepdim=True).div(7)
    codes = ((group / scale).round() + 8).clamp(0, 15).to(torch.int32).view(columns, depth)
    packed = copies_beyond_cache(torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1))
    scale_zero = torch.stack((scale[..., 0].T, torch.zeros_like(scale[..., 0].T)), dim=-1).contiguous()
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda x_MK: rotated(lambda w: multiply(x_MK, w, GROUP, scale_zero), packed)


def _bf16(weight_NK: torch.Tensor) -> Bind:
    copies = copies_beyond_cache(weight_NK)
    return lambda x_MK: rotated(lambda w: linear(x_MK, w), copies)


FEW, ANY, MANY = range(1, 64), range(1, 1 << 30), range(64, 1 << 30)  # rows; `_int_mm` needs 17 at least
_ALL: dict[str, tuple[Callable[[torch.Tensor], Bind], dict[str, range]]] = {
    "F.linear bf16": (_bf16, {"bf16": ANY, "int8": MANY, "int4": MANY}),  # nobody is forced to quantise
    "_weight_int8pack_mm": (_int8_pack, {"int8": FEW}),
    "_int_mm with scales": (_int8_mm, {"int8": MANY}),
    "_int_mm, no scales": (_int8_mm_bare, {"int8": MANY}),
    "_weight_int4pack_mm": (_int4_pack, {"int4": FEW}),
}


class Rivals:
    """Torch's operators for one bf16 weight; the copies of each are made once, when they are first asked for."""

    def __init__(self, weight_NK: torch.Tensor) -> None:
        self._weight_NK = weight_NK
        self._made: dict[str, Bind] = {}

    def of(self, codes: str, x_MK: torch.Tensor) -> dict[str, Call]:
        """Those for weights of `codes` and as many rows as `x_MK`, bf16, has."""
        found = {}
        for name, (make, formats) in _ALL.items():
            if len(x_MK) in formats.get(codes, ()):
                if name not in self._made:
                    self._made[name] = make(self._weight_NK)
                found[name] = self._made[name](x_MK)
        return found
