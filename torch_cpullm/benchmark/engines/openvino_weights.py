"""A checkpoint's matrices as OpenVINO's users have them: nncf.compress_weights with the settings of optimum-intel.

Integers have a scale s (f16) and a zero point z for each row (INT8) or each 128 columns of a row (INT4):
w = (q - z) * s, with q from 0 to 255 or 15. The CPU plugin's FullyConnectedCompressed takes exactly these nodes in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import openvino as ov
import torch
from openvino import opset13 as op
from safetensors import safe_open

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

GROUP = 128  # columns that share a scale in INT4, optimum-intel's default
ROWS = 8192  # quantised in one go: 64 MiB of float32 with 2048 columns, where a whole embedding would be 1 GiB


class Weights:
    """Tensors of a checkpoint by name, each turned into nodes of a graph when it is asked for."""

    def __init__(self, checkpoint: Path, format: str) -> None:
        files: list[Any] = [safe_open(path, framework="pt") for path in sorted(checkpoint.glob("*.safetensors"))]
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118  (it is no dict)
        self._format = format
        self._made: dict[str, ov.Node] = {}
        self._memory: list[NDArray[Any]] = []  # a constant points into an array and does not keep it

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def vector(self, name: str) -> ov.Node:
        """A norm's gain or a bias, in float32."""
        return op.constant(self._files[name].get_tensor(name).float().numpy())

    def matrix(self, name: str, coarse: bool = True) -> ov.Node:
        """Nodes that yield a matrix in float32, the same ones each time.

        Args:
            name: in the checkpoint.
            coarse: False for embeddings and the head, which stay INT8 where the others are INT4.
        """
        if name not in self._made:
            self._made[name] = op.convert(self._compressed(name, coarse), ov.Type.f32)
        return self._made[name]

    def _compressed(self, name: str, coarse: bool) -> ov.Node:
        values_NK = self._files[name].get_tensor(name)
        if self._format == "BF16":
            return self._constant(values_NK.bfloat16().view(torch.int16), ov.Type.bf16, values_NK.shape)
        if self._format == "INT8" or not coarse:
            return self._integers(values_NK, 8)
        rows, columns = values_NK.shape
        grouped = values_NK.view(rows, -1, math.gcd(columns, GROUP))
        return op.reshape(self._integers(grouped, 4), [rows, columns], special_zero=False)

    def _integers(self, values: torch.Tensor, bits: int) -> ov.Node:
        pieces = [_quantise(piece.float(), 2**bits - 1) for piece in values.split(ROWS)]
        codes, zero, scale = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        kind = ov.Type.u8 if bits == 8 else ov.Type.u4
        if bits == 4:
            codes, zero = (_paired(nibbles) for nibbles in (codes, zero))
        shifted = op.subtract(
            op.convert(self._constant(codes, kind, values.shape), ov.Type.f16),
            op.convert(self._constant(zero, kind, scale.shape), ov.Type.f16),
        )
        return op.multiply(shifted, op.constant(scale.numpy()))

    def _constant(self, data: torch.Tensor, kind: ov.Type, shape: torch.Size) -> ov.Node:
        self._memory.append(data.numpy())
        return op.constant(ov.Tensor(self._memory[-1], list(shape), kind), shared_memory=True)


def _quantise(values: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    scale = ((high - low) / top).clamp_min(torch.finfo(torch.float16).tiny).half()
    zero = (-low / scale).round().clamp(0, top)
    codes = (values / scale + zero).round().clamp(0, top)
    return codes.to(torch.uint8), zero.to(torch.uint8), scale


def _paired(nibbles: torch.Tensor) -> torch.Tensor:
    flat = nibbles.flatten()
    return flat[0::2] | flat[1::2] << 4
