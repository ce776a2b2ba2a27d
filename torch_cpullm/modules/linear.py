"""nn.Linear whose weight is packed. Looks like the original to everything that reads weights or state_dicts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from torch_cpullm.distributed.gathering import Gathering
from torch_cpullm.formats import WeightFormat
from torch_cpullm.modules.packed import PackedModule, PackedState
from torch_cpullm.ops import linear as ops
from torch_cpullm.plan.shard import Part


class PackedLinear(PackedModule, nn.Linear):  # type: ignore[override]
    """A Linear that keeps `packed` in place of its weight; see PackedModule.

    `cut` leaves it a rank's part of the weight: forward then takes the part's inputs and gives the part's outputs,
    those of all ranks after `gather_by`.
    `in_features`, `out_features` and `bias` stay those of the whole, since they tell transformers what model it is.
    """

    @staticmethod
    def take_over(
        linear: nn.Linear,
        packed: torch.Tensor,
        format: WeightFormat,
        tied_to: nn.Module | None,
        multiplier_K: torch.Tensor | None = None,
    ) -> None:
        """Turn `linear` into a PackedLinear in place and drop its weight."""
        tied = (tied_to,) if tied_to else None
        state = PackedState(
            format,
            linear.weight.dtype,
            linear.weight.requires_grad,
            type(linear),
            tied=tied,
            multiplier_K=multiplier_K,
        )
        del linear.weight
        linear.__class__ = PackedLinear
        linear.begin(packed, state)  # type: ignore[operator]

    @property
    def part(self) -> Part | None:
        """What a rank has of the weight; None: the whole."""
        return self._packed_state.part

    @property
    def gathering(self) -> Gathering | None:
        """How forward comes by the outputs of other ranks."""
        return self._packed_state.gathering

    def gather_by(self, gathering: Gathering) -> None:
        """Let forward give the outputs of all ranks."""
        vars(self)["_packed_state"] = replace(self._packed_state, gathering=gathering)

    def cut(self, part: Part) -> None:
        """Keep a part of the weight and drop the whole."""
        rows = [(span.first, span.stop) for span in part.rows]
        self.packed = ops.slice_packed(self.packed, rows, (part.inputs.first, part.inputs.stop), part.bias)
        vars(self)["_packed_state"] = replace(self._packed_state, multiplier_K=None, part=part)

    def give_back(self) -> None:
        """Turn back into the Linear it was, with the weight dequantised, or tied again."""
        original = self._packed_state.original
        weight = self.end()
        self.__class__ = original  # type: ignore[assignment]
        self.register_parameter("weight", weight)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Input [..., K] -> [..., N] in the input's dtype; with the dequantised weight where a gradient is wanted."""
        if torch.is_grad_enabled() and input.requires_grad:
            return nn.functional.linear(input, self.weight.to(input.dtype), self.bias)
        gathering = self._packed_state.gathering
        return self.own(input) if gathering is None else gathering.gather(self.own(input))

    def own(self, input: torch.Tensor) -> torch.Tensor:
        """The outputs that this rank has the rows of."""
        return ops.linear(input, self.packed)
