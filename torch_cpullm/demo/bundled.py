"""Models with trained weights: the bundled one, or a folder of the user's, with the text both are judged by."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from torch_cpullm.benchmark.causal_lm import CausalLM
from torch_cpullm.demo.subject import Subject, Text, prompt_length
from torch_cpullm.errors import ConfigError

MODEL_DIR = Path(__file__).parent / "model"

# Openings in the manner of the standard library: the bundled model has read nothing else.
CODE_PROMPTS = (
    'def read_config(path):\n    """Read the configuration file at *path* and return',
    "class Connection:\n    def __init__(self, host, port, timeout=None):\n",
    "import unittest\n\nclass QueueTest(unittest.TestCase):\n    def test_put_and_get(self):\n",
)
# One of facts, one of prose, one of code: whatever the checkpoint was trained for, one of them suits it.
GENERAL_PROMPTS = (
    "The three largest cities of France are",
    "It was a quiet evening in the harbour until",
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
)


def held_out_text() -> str:
    """Read the held-out packages of the standard library, a few hundred KB that no training token came from."""
    return (MODEL_DIR / "held_out.txt").read_text(encoding="utf-8")


def load_bundled() -> tuple[CausalLM, PreTrainedTokenizerBase]:
    """Load the bundled model in bf16 and its tokenizer."""
    model = cast("CausalLM", AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.bfloat16))
    return model, AutoTokenizer.from_pretrained(MODEL_DIR)


def bundled(new_tokens: int) -> Subject:
    """Load the bundled model with its prompts and the whole held-out text."""
    model, tokenizer = load_bundled()
    return _subject("the bundled model", model, tokenizer, CODE_PROMPTS, new_tokens)


def checkpoint(path: Path, new_tokens: int) -> Subject:
    """Load a user's own checkpoint, in the dtype it is stored in.

    Raises:
        ConfigError: `path` is no folder with a config.json, or transformers cannot load a causal LM from it.
    """
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"model: expected a folder written by save_pretrained (config.json, weights, tokenizer), found none at "
            f"'{path}'; leave --model out for the bundled model, or take --shape for random weights"
        )
    try:
        model: CausalLM = AutoModelForCausalLM.from_pretrained(path)  # type: ignore[assignment]
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model: transformers loads no causal LM with a tokenizer from '{path}': {reason}") from error
    return _subject(path.resolve().name, model, tokenizer, GENERAL_PROMPTS, new_tokens)


def _subject(
    name: str, model: CausalLM, tokenizer: PreTrainedTokenizerBase, prompts: tuple[str, ...], new_tokens: int
) -> Subject:
    held_out_T = encode(tokenizer, held_out_text())
    return Subject(
        name=name,
        model=model,
        prompt_BT=held_out_T[None, : prompt_length(model, new_tokens)],
        text=Text(tokenizer=tokenizer, prompts=prompts, held_out_T=held_out_T),
    )


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    """Token ids `[T]` of a text longer than the model's context, without the warning that it is."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)
