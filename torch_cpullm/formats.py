"""The number formats of weights, activations and caches, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KvFormat = Literal["f32", "bf16", "int8"]
"""How the KV cache stores its elements."""

Codes = Literal["f32", "bf16", "int8", "int4"]
Activation = Literal["f32", "bf16", "int8"]
CODES: tuple[Codes, ...] = ("f32", "bf16", "int8", "int4")  # order of layout::Codes in csrc/layout/panel.h
ACTIVATIONS: tuple[Activation, ...] = ("f32", "bf16", "int8")  # order of layout::Activation


@dataclass(frozen=True)
class WeightFormat:
    """How a weight is stored, and what x becomes before it is multiplied.

    Attributes:
        codes: of the weight. "int8" is symmetric; "int4" has a scale for each group.
        activation: the codes' own type for "f32" and "bf16"; for quantised codes "int8" (per row and group of 256
            inputs, exact integer sums) or "bf16" (codes are widened to bf16 as they are multiplied).
        group: inputs that share a scale: 32, 64 or 128; 0: one scale for each output, "int8" only.
        asymmetric: "int4" only: a zero point and a float16 scale for each group. Without, scales have two levels.
    """

    codes: Codes
    activation: Activation
    group: int = 0
    asymmetric: bool = False

    def __str__(self) -> str:
        """Short: int4 g32, int8 a16."""
        words: list[str] = [self.codes]
        if self.group:
            words.append(f"g{self.group}")
        if self.asymmetric:
            words.append("asymmetric")
        if self.quantized and self.activation == "bf16":
            words.append("a16")
        return " ".join(words)

    @property
    def quantized(self) -> bool:
        """Whether the codes are integers."""
        return self.codes in ("int8", "int4")

    @property
    def two_levels(self) -> bool:
        """Whether a group's scale is the step of its block of 256 inputs times a whole number up to 15."""
        return self.codes == "int4" and not self.asymmetric

    @property
    def cut_unit(self) -> int:
        """Inputs may be cut at multiples of this, and each side keeps its codes and scales (csrc/drivers/slice.h)."""
        if self.two_levels:
            return 256
        return self.group or 1 << CODES.index(self.codes)


F32 = WeightFormat("f32", "f32")
BF16 = WeightFormat("bf16", "bf16")
INT8 = WeightFormat("int8", "int8")
INT4 = WeightFormat("int4", "int8", group=32)
