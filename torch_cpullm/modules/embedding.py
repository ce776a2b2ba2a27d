"""nn.Embedding whose table is packed, or read from the packed head it is tied to."""

from __future__ import annotations

import torch
from torch import nn

from torch_cpullm.formats import WeightFormat
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.modules.packed import PackedModule, PackedState
from torch_cpullm.ops import linear as ops


class PackedEmbedding(PackedModule, nn.Embedding):  # type: ignore[override]
    """An Embedding that keeps `packed` in place of its table; see PackedModule."""

    @staticmethod
    def take_over(embedding: nn.Embedding, source: torch.Tensor | PackedLinear, format: WeightFormat) -> None:
        """Turn `embedding` into a PackedEmbedding in place and drop its table.

        Args:
            embedding: a plain one.
            source: packed bytes, or the tied head that holds them for both.
            format: of the bytes.
        """
        owner = (source,) if isinstance(source, PackedLinear) else None
        trainable = embedding.weight.requires_grad
        state = PackedState(format, embedding.weight.dtype, trainable, type(embedding), owner=owner)
        del embedding.weight
        embedding.__class__ = PackedEmbedding
        embedding.begin(None if isinstance(source, PackedLinear) else source, state)  # type: ignore[operator]

    def give_back(self) -> None:
        """Turn back into the Embedding it was, with the table dequantised."""
        original = self._packed_state.original
        weight = self.end()
        self.__class__ = original  # type: ignore[assignment]
        self.register_parameter("weight", weight)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Token ids [...] -> [..., D] in the dtype the table had."""
        out = ops.embed(input, self.bytes, self._packed_state.dtype)
        # The table is frozen, but what follows may be trained: layers see by their input that gradients are wanted.
        return out.requires_grad_() if torch.is_grad_enabled() and self._packed_state.trainable else out
