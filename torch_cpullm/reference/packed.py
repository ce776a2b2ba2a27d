"""The packed layout, read in plain Python: the definition that csrc/layout/ is tested against."""

from __future__ import annotations

import struct

import torch

from torch_cpullm.formats import ACTIVATIONS, CODES, WeightFormat
from torch_cpullm.reference.linear import DenseWeight


def decode(packed: torch.Tensor) -> DenseWeight:
    """Read packed bytes as csrc/layout/packed.h and panel.h draw them. Without the bias."""
    header = struct.unpack("<QIBBBBiIqqqQQ", bytes(packed[:64].tolist()))
    _, _, codes, activation, asymmetric, has_bias, group, has_multiplier, columns, depth, total, *_ = header
    format = WeightFormat(CODES[codes], ACTIVATIONS[activation], group, bool(asymmetric))
    panels, at = -(-columns // 64), 64 + (-(-columns * 4 // 64) * 64 if has_bias else 0)

    def floats(count: int) -> torch.Tensor:
        return packed[at : at + 4 * count].clone().view(torch.float32)

    multiplier_K = floats(depth) if has_multiplier else None
    at += -(-depth * 4 // 64) * 64 if has_multiplier else 0
    column_scale_N = floats(panels * 64)[:columns] if format.quantized else torch.ones(columns)
    at = _page_after(at + (panels * 256 if format.quantized else 0))
    per_line = {"f32": 1, "bf16": 2, "int8": 4, "int4": 8}[format.codes]
    unit, whole = format.group or per_line, {"f32": 64, "bf16": 128}.get(format.codes, 256)
    padded = -(-depth // unit) * unit
    steps = torch.zeros(panels * 64, padded)
    scale = torch.ones(panels * 64, padded // format.group if format.group else 1)
    for panel in range(panels):
        for first in range(0, padded, whole):
            k = min(whole, padded - first)
            for strip in range(4):
                rows = slice(panel * 64 + strip * 16, panel * 64 + strip * 16 + 16)
                zero = 0.0 if format.asymmetric else {"int8": 128.0, "int4": 8.0}.get(format.codes, 0.0)
                zero_16k: torch.Tensor | float = zero
                groups = k // format.group if format.group else 0
                if format.two_levels:
                    step_16 = packed[at : at + 32].clone().view(torch.float16).float()
                    multiplier_G16 = packed[at + 32 : at + 32 + 16 * groups].view(torch.int8).float().view(groups, 16)
                    scale[rows, first // format.group : first // format.group + groups] = (multiplier_G16 * step_16).T
                    at += -(-(32 + 16 * groups) // 64) * 64
                elif format.group:
                    scale_G16 = packed[at : at + 32 * groups].clone().view(torch.float16).float().view(groups, 16)
                    scale[rows, first // format.group : first // format.group + groups] = scale_G16.T
                    at += -(-32 * groups // 64) * 64
                    if format.asymmetric:
                        zero_G16 = packed[at : at + 16 * groups].float().view(groups, 16)
                        zero_16k = zero_G16.T.repeat_interleave(format.group, 1)
                        at += -(-16 * groups // 64) * 64
                lines = packed[at : at + k // per_line * 64].clone().view(-1, 16, 4)
                at += k // per_line * 64
                steps[rows, first : first + k] = _line_values(lines, format.codes) - zero_16k
    assert _page_after(at) == total == packed.numel()
    return DenseWeight(format, steps[:columns, :depth], scale[:columns], column_scale_N, multiplier_K)


def _page_after(at: int) -> int:
    return -(-at // 4096) * 4096


def _line_values(lines_L16b: torch.Tensor, codes: str) -> torch.Tensor:
    """Lines [L, 16, 4 bytes] -> the 16 columns' elements, [16, L * k per line]."""
    if codes == "f32":
        return lines_L16b.view(torch.float32)[..., 0].T
    if codes == "bf16":
        return lines_L16b.view(torch.bfloat16).float().transpose(0, 1).flatten(1)
    if codes == "int8":
        return lines_L16b.float().transpose(0, 1).flatten(1)
    return torch.cat((lines_L16b & 15, lines_L16b >> 4), dim=-1).float().transpose(0, 1).flatten(1)
