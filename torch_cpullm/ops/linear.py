"""Packed linear layers: pack once, multiply often. Layout: csrc/layout/panel.h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from torch_cpullm.ops.library import fake, kernels

Format = Literal["f32", "bf16", "int8"]
_FORMATS: tuple[Format, ...] = ("f32", "bf16", "int8")  # order of layout::Format


@dataclass(frozen=True)
class PackedInfo:
    """What a packed weight's header says."""

    out_features: int
    in_features: int
    format: Format
    has_bias: bool
    version: int


def pack(weight_NK: torch.Tensor, bias_N: torch.Tensor | None, format: Format) -> torch.Tensor:
    """Re-lay a weight for the kernels.

    Args:
        weight_NK: any floating dtype, [outputs, inputs].
        bias_N: any floating dtype, or None.
        format: "int8" quantises symmetrically per output (absmax / 127, ties to even); "bf16" rounds; "f32" keeps.

    Returns:
        uint8 [bytes], opaque and self-describing; safe to copy, save and map.

    Raises:
        ValueError: an empty weight, a bias of another length, an unknown format.
    """
    out: torch.Tensor = kernels.pack(weight_NK, bias_N, format)
    return out


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The weight back, dequantised: float32 [N, K]. Raises ValueError on bytes that `pack` did not write."""
    out: torch.Tensor = kernels.unpack(packed)
    return out


def packed_info(packed: torch.Tensor) -> PackedInfo:
    """Read the header. Raises ValueError for foreign, truncated or outdated bytes."""
    columns, depth, format_index, has_bias, version = kernels.packed_info(packed)
    return PackedInfo(columns, depth, _FORMATS[format_index], bool(has_bias), version)


def linear(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """X [..., K] times the packed weight, plus its bias: [..., N] in x's dtype (float32, bfloat16 or float16).

    With an int8 weight the rows of x are quantised to int8 per group of 256 inputs, sums are exact int32 inside a
    group. A row's bits do not depend on the other rows, on the thread count or on the run.

    Raises:
        ValueError: x's last dimension is not K; `packed` is not a packed weight.
        TypeError: x's dtype is not one of the three.
    """
    out: torch.Tensor = kernels.linear(x, packed)
    return out


@fake("unpack")
def _(packed: torch.Tensor) -> torch.Tensor:
    # The shape lies in the bytes, which a fake tensor does not have.
    context = torch.library.get_ctx()
    return packed.new_empty((context.new_dynamic_size(), context.new_dynamic_size()), dtype=torch.float32)


@fake("linear")
def _(x: torch.Tensor, _packed: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], torch.library.get_ctx().new_dynamic_size()))


@fake("pack")
def _(weight: torch.Tensor, bias: torch.Tensor | None, format: str) -> torch.Tensor:
    columns, depth = weight.shape
    bytes_per = {"f32": 4, "bf16": 2, "int8": 1}[format]
    panels = (columns + 63) // 64
    steps = (depth * bytes_per + 3) // 4
    head = 64 + (0 if bias is None else (columns * 4 + 63) // 64 * 64) + (panels * 256 if format == "int8" else 0)
    return weight.new_empty((head + panels * steps * 256,), dtype=torch.uint8)
