"""Packed linear layers: pack once, multiply often. Layout: csrc/layout/panel.h and packed.h."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_cpullm.formats import ACTIVATIONS, CODES, Codes, WeightFormat
from torch_cpullm.ops.library import fake, kernels


@dataclass(frozen=True)
class PackedInfo:
    """What a packed weight's header says."""

    out_features: int
    in_features: int
    format: WeightFormat
    has_bias: bool
    has_multiplier: bool
    version: int


@dataclass(frozen=True)
class Scales:
    """Scales that somebody else has chosen (GPTQ): value = (code - zero) * scale.

    Attributes:
        scale_NG: float, [outputs, groups] (one group of all inputs without groups).
        zero_NG: whole numbers 0 to 15, for asymmetric codes only.
    """

    scale_NG: torch.Tensor
    zero_NG: torch.Tensor | None = None


def pack(
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    format: WeightFormat,
    multiplier_K: torch.Tensor | None = None,
    scales: Scales | None = None,
    lasting: bool = True,
) -> torch.Tensor:
    """Re-lay a weight for the kernels, quantised by rounding to nearest.

    Args:
        weight_NK: any floating dtype, [outputs, inputs].
        bias_N: any floating dtype, or None.
        format: "int8": scale = absmax / 127 per output or group, ties to even. "int4": of five scales for each group
            the one with the smallest squared error. Scales are stored as float16 beside a power of two per output;
            those of symmetric "int4" are whole multiples, up to 15, of one such step for each 256 inputs.
        multiplier_K: positive factors that are taken out of the weight and put on x (csrc/layout/packed.h).
        scales: to be used instead of those, rounded to what is stored; codes are still rounded to nearest on them.
            Scales that are whole multiples, up to 15, of a number of 11 bits in each block of 256 inputs are stored
            exactly by symmetric "int4".
        lasting: False: to be dropped soon, and so not side by side with weights that stay.

    Returns:
        uint8 [bytes], opaque and self-describing; safe to copy, save and map.

    Raises:
        ValueError: an empty weight, a bias, multiplier or scale of another shape, a format that does not exist.
    """
    out: torch.Tensor = kernels.pack(
        weight_NK,
        bias_N,
        format.codes,
        format.activation,
        format.group,
        format.asymmetric,
        multiplier_K,
        scales.scale_NG if scales else None,
        scales.zero_NG if scales else None,
        lasting,
    )
    return out


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The weight back, dequantised: float32 [N, K]. Raises ValueError on bytes that `pack` did not write."""
    out: torch.Tensor = kernels.unpack(packed)
    return out


def copy_packed(packed: torch.Tensor) -> torch.Tensor:
    """The same bytes where the kernels read them fastest: aligned, on huge pages.

    Raises:
        ValueError: on bytes that `pack` did not write.
    """
    out: torch.Tensor = kernels.copy_packed(packed)
    return out


def slice_packed(
    packed: torch.Tensor, rows: Sequence[tuple[int, int]], inputs: tuple[int, int], bias: bool
) -> torch.Tensor:
    """A part of a packed weight, packed: its values are those of the whole, bit for bit.

    Args:
        packed: the whole.
        rows: ranges (first, stop) of outputs, in the order of the part's own.
        inputs: a range (first, stop), at multiples of the format's `cut_unit` or the end.
        bias: keep the bias of those rows, if there is one.

    Raises:
        ValueError: an empty range, one outside the weight, or a cut where both sides share a scale.
    """
    ends = [end for first_stop in rows for end in first_stop]
    out: torch.Tensor = kernels.slice_packed(packed, ends, *inputs, bias)
    return out


def packed_info(packed: torch.Tensor) -> PackedInfo:
    """Read the header. Raises ValueError for foreign, truncated or outdated bytes."""
    columns, depth, codes, activation, group, asymmetric, bias, multiplier, version = kernels.packed_info(packed)
    format = WeightFormat(CODES[codes], ACTIVATIONS[activation], group, bool(asymmetric))
    return PackedInfo(columns, depth, format, bool(bias), bool(multiplier), version)


def linear(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """X [..., K] times the packed weight, plus its bias: [..., N] in x's dtype (float32, bfloat16 or float16).

    With int8 activations the rows of x are quantised per group of 256 inputs, sums are exact int32 inside a group. A
    row's bits do not depend on the other rows, on the thread count or on the run.

    Raises:
        ValueError: x's last dimension is not K; `packed` is not a packed weight.
        TypeError: x's dtype is not one of the three.
    """
    out: torch.Tensor = kernels.linear(x, packed)
    return out


def embed(ids: torch.Tensor, packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows of the packed weight, dequantised: ids [...] (int64 or int32) -> [..., K] in `dtype`.

    Raises:
        IndexError: an id is not a row of the weight.
        TypeError: ids are no integers; dtype is not float32, bfloat16 or float16.
    """
    out: torch.Tensor = kernels.embed(ids, packed, dtype)
    return out


@fake("unpack")
def _(packed: torch.Tensor) -> torch.Tensor:
    # The shape lies in the bytes, which a fake tensor does not have.
    context = torch.library.get_ctx()
    return packed.new_empty((context.new_dynamic_size(), context.new_dynamic_size()), dtype=torch.float32)


@fake("copy_packed")
def _(packed: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(packed)


@fake("slice_packed")
def _(packed: torch.Tensor, *_: object) -> torch.Tensor:
    return packed.new_empty((torch.library.get_ctx().new_dynamic_size(),))


@fake("linear")
def _(x: torch.Tensor, _packed: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], torch.library.get_ctx().new_dynamic_size()))


@fake("embed")
def _(ids: torch.Tensor, packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return packed.new_empty((*ids.shape, torch.library.get_ctx().new_dynamic_size()), dtype=dtype)


def _lines(bytes_: int) -> int:
    return (bytes_ + 63) // 64 * 64


def _pages(bytes_: int) -> int:
    return (bytes_ + 4095) // 4096 * 4096


@fake("pack")
def _(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    codes: Codes,
    _activation: str,
    group: int,
    asymmetric: bool,
    multiplier: torch.Tensor | None,
    *_: object,
) -> torch.Tensor:
    columns, depth = weight.shape
    per_line = 1 << CODES.index(codes)
    block = {"f32": 64, "bf16": 128}.get(codes, 256)
    unit = group or per_line
    padded = (depth + unit - 1) // unit * unit

    def strip_bytes(k: int) -> int:
        groups = k // group if group else 0
        if codes == "int4" and not asymmetric:
            return _lines(32 + groups * 16) + k // per_line * 64
        return _lines(groups * 32) + (_lines(groups * 16) if asymmetric else 0) + k // per_line * 64

    panels = (columns + 63) // 64
    panel = 4 * (padded // block * strip_bytes(block) + (strip_bytes(padded % block) if padded % block else 0))
    head = 64 + (0 if bias is None else _lines(columns * 4)) + (0 if multiplier is None else _lines(depth * 4))
    begin = _pages(head + (panels * 256 if per_line >= 4 else 0))
    return weight.new_empty((_pages(begin + panels * panel),), dtype=torch.uint8)
