"""The type of what is timed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from transformers import PreTrainedModel

    class CausalLM(PreTrainedModel):
        """What every causal LM of transformers is; transformers itself has no type for a model that generates."""

        generate: Callable[..., Any]
else:
    from transformers import PreTrainedModel as CausalLM

__all__ = ["CausalLM"]
