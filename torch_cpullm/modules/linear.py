"""nn.Linear whose weight is packed. Looks like the original to everything that reads weights or state_dicts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torch_cpullm.errors import PackedWeightError
from torch_cpullm.ops import linear as ops
from torch_cpullm.ops.linear import Format


class PackedLinear(nn.Linear):
    """A Linear that keeps `packed` (uint8, layout of csrc/layout/panel.h) in place of its weight.

    `weight` reads the weight dequantised, in the dtype the model has; assigning a Parameter to it, or loading a
    state_dict, packs anew. Made by `PackedLinear.take_over`, undone by `give_back`; never constructed.
    """

    packed: torch.Tensor
    _format: Format
    _weight_dtype: torch.dtype
    _tied: tuple[nn.Module] | None  # in a tuple, so that nn.Module does not register it as a child

    @staticmethod
    def take_over(linear: nn.Linear, packed: torch.Tensor, format: Format, tied_to: nn.Module | None) -> None:
        """Turn `linear` into a PackedLinear in place and drop its weight."""
        dtype, trainable = linear.weight.dtype, linear.weight.requires_grad
        del linear.weight
        linear.__class__ = PackedLinear
        linear.register_buffer("packed", packed, persistent=False)
        exact = format == "f32" or (format == "bf16" and dtype == torch.bfloat16) or tied_to is not None
        vars(linear)["_lossy"] = not exact  # whether give_back returns other values than were taken
        vars(linear).update(
            _format=format, _weight_dtype=dtype, _trainable=trainable, _tied=(tied_to,) if tied_to else None
        )

    def give_back(self) -> None:
        """Turn back into a plain Linear with the weight dequantised, or tied again."""
        tied, trainable = self._tied, vars(self)["_trainable"]
        weight = tied[0].weight if tied else nn.Parameter(self.weight.detach(), requires_grad=trainable)
        del self.packed
        for name in ("_format", "_weight_dtype", "_trainable", "_tied", "_lossy"):
            vars(self).pop(name, None)
        self.__class__ = nn.Linear  # type: ignore[assignment]
        self.register_parameter("weight", weight)  # type: ignore[arg-type]

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """The weight [N, K], dequantised; of a tied head the embedding's own."""
        if self._tied:
            return self._tied[0].weight  # type: ignore[return-value]
        return ops.unpack(self.packed).to(self._weight_dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        """Pack what is assigned to `weight`."""
        if name == "weight":
            self.pack(value)
        else:
            super().__setattr__(name, value)

    def pack(self, value: torch.Tensor) -> None:
        """Take another weight [N, K] in place of the present one. Raises PackedWeightError for another shape."""
        if tuple(value.shape) != (self.out_features, self.in_features):
            raise PackedWeightError(
                f"weight: expected shape {(self.out_features, self.in_features)}, got {tuple(value.shape)}; "
                "call torch_cpullm.restore(model) before resizing a layer"
            )
        self.packed = ops.pack(value.detach(), self.bias, self._format)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Input [..., K] -> [..., N] in the input's dtype; with the dequantised weight where a gradient is wanted."""
        if torch.is_grad_enabled() and input.requires_grad:
            return nn.functional.linear(input, self.weight.to(input.dtype), self.bias)
        return ops.linear(input, self.packed)

    def extra_repr(self) -> str:
        """Shape and format, for print(model)."""
        return f"{super().extra_repr()}, format={self._format}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight = self.weight
        destination[f"{prefix}weight"] = weight if keep_vars else weight.detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        weight = state_dict.pop(f"{prefix}weight", None)
        strict, missing = args[1], args[2]
        super()._load_from_state_dict(state_dict, prefix, *args)
        if weight is not None:
            self.pack(weight)
        elif strict:
            missing.append(f"{prefix}weight")

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        moved = fn(torch.empty(0, dtype=self._weight_dtype))
        if moved.device.type != "cpu":
            raise PackedWeightError(
                f"device: packed weights live on the CPU, asked to move to {moved.device}; "
                "call torch_cpullm.restore(model) first"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._weight_dtype = moved.dtype
        return self
