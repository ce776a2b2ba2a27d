"""What the demo measures on: a model, and the text it can be judged by when its weights mean something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torch_cpullm.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from torch_cpullm.benchmark.causal_lm import CausalLM

PROMPT_TOKENS = 512  # the prefill length every peer in the README's table is measured at
TINY_PARAMETERS = 100_000_000  # below, the whole held-out text is scored in seconds
WINDOWS_OF_LARGE = 16  # above, 8192 tokens: half a minute at the 300 tokens/s of a stock 1B model


@dataclass(frozen=True)
class Text:
    """What only trained weights have: a tokenizer, prompts worth continuing, held-out text."""

    tokenizer: PreTrainedTokenizerBase
    prompts: tuple[str, ...]
    held_out_T: torch.Tensor  # token ids


@dataclass(frozen=True)
class Subject:
    """One model to compare on, stock, in the dtype it came in."""

    name: str
    model: CausalLM
    prompt_BT: torch.Tensor  # token ids, one row: what the timing feeds to generate()
    text: Text | None  # None for random weights: there is nothing to read or to score

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters, shared ones counted once."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @property
    def dtype(self) -> str:
        """The parameters' dtype in two to four letters, as in the report's heading."""
        return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}.get(
            self.model.dtype, str(self.model.dtype).removeprefix("torch.")
        )

    @property
    def windows(self) -> int | None:
        """How many held-out windows to score; None means all of them."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return None if parameters < TINY_PARAMETERS else WINDOWS_OF_LARGE


def prompt_length(model: CausalLM, new_tokens: int) -> int:
    """Choose the tokens of prompt to time: 512, or as many as the model's context leaves beside `new_tokens`.

    Raises:
        ConfigError: `new_tokens` alone fill the context, or are too few to time decoding.
    """
    limit = getattr(model.config, "max_position_embeddings", None) or PROMPT_TOKENS + new_tokens
    if not 2 <= new_tokens < limit:
        raise ConfigError(
            f"tokens: expected 2 to {limit - 1} (the model's context is {limit} tokens), got {new_tokens}; "
            "leave --tokens out for 64"
        )
    return int(min(PROMPT_TOKENS, limit - new_tokens))
