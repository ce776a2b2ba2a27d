"""Text as it is generated, on the console, through the model's own generate()."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import TextStreamer

if TYPE_CHECKING:
    from rich.console import Console

    from torch_cpullm.benchmark.causal_lm import CausalLM
from torch_cpullm.demo.subject import Text


class ConsoleStreamer(TextStreamer):
    """transformers' TextStreamer, writing to a rich console instead of stdout."""

    def __init__(self, text: Text, console: Console) -> None:
        super().__init__(text.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.console = console

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print words as they become final; markup in them is text."""
        self.console.print(text, end="\n" if stream_end else "", markup=False, highlight=False, soft_wrap=True)


def write(model: CausalLM, text: Text, new_tokens: int, console: Console) -> list[list[int]]:
    """Stream a greedy continuation of each prompt and return the new token ids of each."""
    made = []
    for prompt in text.prompts:
        inputs = text.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        console.print(prompt, style="dim", end="", markup=False, highlight=False, soft_wrap=True)
        with torch.inference_mode():
            ids_BT = model.generate(
                **inputs,
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=text.tokenizer.pad_token_id or text.tokenizer.eos_token_id,
                streamer=ConsoleStreamer(text, console),
            )
        made.append(ids_BT[0, inputs["input_ids"].shape[1] :].tolist())
        console.print()
    return made


def agreement(stock: list[list[int]], ours: list[list[int]]) -> str:
    """Say in one line how far the two texts of each prompt are the same."""
    counts = [f"{_common(left, right)} of {len(left)}" for left, right in zip(stock, ours, strict=True)]
    return f"Tokens equal to stock's before the first difference: {', '.join(counts)}."


def _common(left: list[int], right: list[int]) -> int:
    different = (at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return next(different, min(len(left), len(right)))
