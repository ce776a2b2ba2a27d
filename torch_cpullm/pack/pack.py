"""nn.Linear -> packed weight, and the measurement of what packing cost it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from torch_cpullm.formats import Codes, WeightFormat
from torch_cpullm.ops import linear as ops

# Relative error of a product (root mean square) that a format may cost. Per-channel int8 on normal weights gives about
# 0.9 %; 5 % means that a few outliers set the scale of all the others. int4 in groups of 32 to 128 gives 8 to 11 % on
# normal weights. bf16: 0.3 %. f32: rounding only.
_LIMITS: dict[Codes, float] = {"int8": 0.05, "int4": 0.25, "bf16": 0.01, "f32": 1e-5}
_PROBE_ROWS = 4


@dataclass(frozen=True)
class PackCheck:
    """What packing changed: error = |packed(x) - original(x)| / |original(x)| over some rows."""

    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the format's limit (NaN is not)."""
        return self.error <= self.limit


def pack_linear(
    module: nn.Linear,
    format: WeightFormat,
    multiplier_K: torch.Tensor | None = None,
    scales: ops.Scales | None = None,
    weight_NK: torch.Tensor | None = None,
    *,
    lasting: bool = True,
) -> torch.Tensor:
    """Pack weight (or `weight_NK` in its place) and bias of `module`; the module is not changed."""
    weight_NK = module.weight if weight_NK is None else weight_NK
    return ops.pack(weight_NK, module.bias, format, multiplier_K, scales, lasting)


def random_rows(depth: int) -> torch.Tensor:
    """Rows to measure a layer with whose real inputs nobody has seen, from a fixed seed."""
    return torch.randn(_PROBE_ROWS, depth, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def check_packed_linear(module: nn.Linear, packed: torch.Tensor, format: WeightFormat, x_MK: torch.Tensor) -> PackCheck:
    """Compare the packed layer with its original on the rows `x_MK`, bias left out."""
    expected = torch.nn.functional.linear(x_MK.to(module.weight.dtype), module.weight).float()
    got = ops.linear(x_MK.float(), packed)
    if module.bias is not None:
        got = got - module.bias.float()
    size = float(expected.norm())
    error = float((got - expected).norm())
    rounding = 1e-2 if module.weight.dtype != torch.float32 else 0.0  # of the original's own 16-bit product
    return PackCheck(error=error / size if size > 0 else error, limit=_LIMITS[format.codes] + rounding)
