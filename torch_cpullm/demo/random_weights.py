"""A subject for speed alone: an architecture with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from torch_cpullm.benchmark.shapes import SEED, config_of, fill, meta_model
from torch_cpullm.benchmark.steps import Advance, silent
from torch_cpullm.demo.subject import Subject, prompt_length


def random_subject(shape: str, new_tokens: int, advance: Advance = silent) -> Subject:
    """Make a shape with random weights in bf16, ready to be timed; its prompt is random too.

    Raises:
        ConfigError: from `config_of`, `meta_model` or `prompt_length`, before any weight is made.
    """
    model = meta_model(config_of(shape))
    length = prompt_length(model, new_tokens)
    generator = torch.Generator().manual_seed(SEED)
    return Subject(
        name=f"{Path(shape).name}, random weights",
        model=fill(model, advance=advance),
        prompt_BT=torch.randint(model.config.vocab_size, (1, length), generator=generator),
        text=None,
    )
