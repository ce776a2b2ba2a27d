"""Calibration texts -> windows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from torch_cpullm.errors import ConfigError

WINDOW = 512
# 32 windows of 512 tokens: with 8, int4 on the bundled model loses a tenth of what calibration gains; 128 gain no more.
MOST_WINDOWS = 32
_FEWEST_TOKENS = 32


def calibration_windows(model: nn.Module, texts: Sequence[str] | torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Token ids int64 [N, T] of at most 32 windows, spread evenly over the texts.

    Args:
        model: its context limits T, its name_or_path finds the tokenizer where none is given.
        texts: strings, or token ids [N, T] already.
        tokenizer: of transformers, or None.

    Raises:
        ConfigError: no tokenizer is found, or the texts are too short.
    """
    if isinstance(texts, torch.Tensor):
        if texts.dim() != 2 or texts.is_floating_point() or texts.shape[1] < _FEWEST_TOKENS or len(texts) == 0:
            raise ConfigError(
                f"calibration: expected texts, or token ids [windows, {_FEWEST_TOKENS} or more], got "
                f"{texts.dtype} of shape {tuple(texts.shape)}"
            )
        return _spread(texts.long())
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ConfigError("calibration: expected a list of strings, or token ids [windows, tokens]")
    tokenizer = tokenizer or tokenizer_for_calibration(model)
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    if len(ids) < _FEWEST_TOKENS:
        raise ConfigError(f"calibration: expected texts of {_FEWEST_TOKENS} tokens or more, got {len(ids)}")
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None) or WINDOW
    width = min(WINDOW, int(limit), len(ids))
    whole = len(ids) // width
    return _spread(torch.tensor(ids[: whole * width], dtype=torch.int64).view(whole, width))


def _spread(ids_NT: torch.Tensor) -> torch.Tensor:
    if len(ids_NT) <= MOST_WINDOWS:
        return ids_NT
    return ids_NT[torch.linspace(0, len(ids_NT) - 1, MOST_WINDOWS).round().long()]


def tokenizer_of(model: Any) -> Any:
    """The tokenizer of the place that the model was loaded from. Raises OSError or ValueError where there is none."""
    from transformers import AutoTokenizer

    name = getattr(model, "name_or_path", "")
    if not name:
        raise OSError("the model does not know where it came from")
    return AutoTokenizer.from_pretrained(name)


def tokenizer_for_calibration(model: Any) -> Any:
    """The same, or a ConfigError that says what to do."""
    try:
        return tokenizer_of(model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"tokenizer: needed for calibration texts, and none was found ({reason}); pass one"
        ) from error
