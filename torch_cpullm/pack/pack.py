"""nn.Linear -> packed weight, and the measurement of what packing cost it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from torch_cpullm.ops import linear as ops
from torch_cpullm.ops.linear import Format

# Relative error of a product (root mean square) that a format may cost. Per-channel int8 on normal weights gives about
# 0.9 %; 5 % means that a few outliers in a row set the scale of all the others. bf16: 0.3 %. f32: rounding only.
_LIMITS: dict[Format, float] = {"int8": 0.05, "bf16": 0.01, "f32": 1e-5}
_PROBE_ROWS = 4


@dataclass(frozen=True)
class PackCheck:
    """What packing changed: error = |packed(x) - original(x)| / |original(x)| on random rows."""

    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the format's limit (NaN is not)."""
        return self.error <= self.limit


def pack_linear(module: nn.Linear, format: Format) -> torch.Tensor:
    """Pack weight and bias of `module`; the module is not changed."""
    return ops.pack(module.weight, module.bias, format)


@torch.no_grad()
def check_packed_linear(module: nn.Linear, packed: torch.Tensor, format: Format) -> PackCheck:
    """Compare the packed layer with its original, bias left out, on rows drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_PROBE_ROWS, module.in_features, generator=generator)
    expected = torch.nn.functional.linear(x.to(module.weight.dtype), module.weight).float()
    got = ops.linear(x, packed)
    if module.bias is not None:
        got = got - module.bias.float()
    size = float(expected.norm())
    error = float((got - expected).norm())
    rounding = 1e-2 if module.weight.dtype != torch.float32 else 0.0  # of the original's own 16-bit product
    return PackCheck(error=error / size if size > 0 else error, limit=_LIMITS[format] + rounding)
