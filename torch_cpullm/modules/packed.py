"""What packed linear layers and packed embeddings share: bytes in place of a weight, that still read as a weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from torch_cpullm.distributed.gathering import Gathering
from torch_cpullm.errors import PackedWeightError, UnsupportedModelError
from torch_cpullm.formats import WeightFormat
from torch_cpullm.ops import linear as ops
from torch_cpullm.plan.shard import Part


@dataclass(frozen=True)
class PackedState:
    """What a packed module remembers of its weight.

    Attributes:
        format: of the bytes.
        dtype: the weight reads in.
        trainable: whether the weight was.
        original: the module's class before.
        owner: the module whose bytes these are, None for its own; modules lie in tuples, so that nn.Module does not
            register them as children.
        tied: the module whose weight was this one.
        multiplier_K: what the bytes were packed with; another weight must keep it, since weights that share x do.
        part: what a rank has of the weight; None: the whole.
        gathering: how a rank comes by the outputs of the others; None: it gives its own.
    """

    format: WeightFormat
    dtype: torch.dtype
    trainable: bool
    original: type[nn.Module]
    owner: tuple[PackedModule] | None = None
    tied: tuple[nn.Module] | None = None
    multiplier_K: torch.Tensor | None = None
    part: Part | None = None
    gathering: Gathering | None = None

    @property
    def lossy(self) -> bool:
        """Whether the weight reads other values than were packed."""
        exact = self.format.codes == "f32" or (self.format.codes == "bf16" and self.dtype == torch.bfloat16)
        return not exact and self.tied is None


class PackedModule(nn.Module):
    """Mixin in front of nn.Linear and nn.Embedding: `packed` (uint8, csrc/layout/packed.h) in place of `weight`.

    `weight` reads the weight dequantised, in the dtype the model has; assigning a Parameter to it, or loading a
    state_dict, packs anew, rounded to nearest. Never constructed: `take_over` turns a module into one, in place, and
    `give_back` undoes it.
    """

    packed: torch.Tensor
    _packed_state: PackedState

    def begin(self, packed: torch.Tensor | None, state: PackedState) -> None:
        """Drop the weight and keep `packed`; None: the bytes are `state.owner`'s."""
        if packed is not None:
            self.register_buffer("packed", packed, persistent=False)
        vars(self)["_packed_state"] = state

    def end(self) -> nn.Parameter:
        """Forget everything; returns the weight dequantised, or tied again."""
        state = self._packed_state
        tied = state.tied[0].weight if state.tied else None
        weight = tied if isinstance(tied, nn.Parameter) else None
        if weight is None:
            weight = nn.Parameter(self.weight.detach(), requires_grad=state.trainable)
        if state.owner is None:
            del self.packed
        del vars(self)["_packed_state"]
        return weight

    @property
    def is_whole(self) -> bool:
        """Whether this is no rank's part."""
        return self._packed_state.part is None

    @property
    def bytes(self) -> torch.Tensor:
        """The packed weight, its own or its owner's."""
        owner = self._packed_state.owner
        return owner[0].packed if owner else self.packed

    def disown(self) -> None:
        """Keep the bytes that were the owner's, whatever becomes of the owner."""
        if self._packed_state.owner is not None:
            self.register_buffer("packed", self.bytes, persistent=False)
            vars(self)["_packed_state"] = replace(self._packed_state, owner=None)

    @property
    def weight(self) -> Any:  # a Parameter in the original, a tensor made on request here
        """The weight, dequantised; of a tied head the embedding's own."""
        state = self._packed_state
        if state.tied:
            return state.tied[0].weight
        self._require_whole()
        return ops.unpack(self.bytes).to(state.dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        """Pack what is assigned to `weight`."""
        if name == "weight":
            self.pack(value)
        else:
            super().__setattr__(name, value)

    def pack(self, value: torch.Tensor) -> None:
        """Take another weight in place of the present one. Raises PackedWeightError for another shape."""
        state = self._packed_state
        self._require_whole()
        info = ops.packed_info(self.bytes)
        if tuple(value.shape) != (info.out_features, info.in_features):
            raise PackedWeightError(
                f"weight: expected shape {(info.out_features, info.in_features)}, got {tuple(value.shape)}; "
                "call torch_cpullm.restore(model) before resizing a layer"
            )
        if state.owner:
            state.owner[0].pack(value)
        else:
            self.packed = ops.pack(value.detach(), getattr(self, "bias", None), state.format, state.multiplier_K)

    def _require_whole(self) -> None:
        if not self.is_whole:
            raise UnsupportedModelError(
                "weight: expected a whole one, got a rank's part of it, which nobody can read, write or replace; do so "
                "before the model is shared among ranks (optimize it without torch_cpullm.distributed.init())"
            )

    def extra_repr(self) -> str:
        """Shape and format, for print(model); and which outputs and inputs a rank has."""
        part = self._packed_state.part
        mine = f", outputs {', '.join(map(str, part.rows))}, inputs {part.inputs}" if part else ""
        return f"{super().extra_repr()}, format={self._packed_state.format}{mine}"

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

    def _apply(self, fn: Any, recurse: bool = True) -> PackedModule:
        moved = fn(torch.empty(0, dtype=self._packed_state.dtype))
        if moved.device.type != "cpu":
            raise PackedWeightError(
                f"device: packed weights live on the CPU, asked to move to {moved.device}; "
                "call torch_cpullm.restore(model) first"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.read_as(moved.dtype)
        return self

    def read_as(self, dtype: torch.dtype) -> None:
        """Let `weight` have another dtype; the bytes stay."""
        vars(self)["_packed_state"] = replace(self._packed_state, dtype=dtype)
