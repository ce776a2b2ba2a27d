"""The demo's command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console
from transformers.utils import logging as transformers_logging

from torch_cpullm.benchmark.shapes import SHAPES
from torch_cpullm.benchmark.steps import step
from torch_cpullm.config import KvCache, Weights
from torch_cpullm.demo.bundled import bundled, checkpoint
from torch_cpullm.demo.compare import Choices, compare
from torch_cpullm.demo.random_weights import random_subject
from torch_cpullm.demo.report import table_of
from torch_cpullm.errors import ConfigError

if TYPE_CHECKING:
    from torch_cpullm.demo.subject import Subject

app = typer.Typer(add_completion=False)


@app.command()
def main(
    shape: Annotated[
        str, typer.Option(help=f"random weights in an architecture: {', '.join(SHAPES)}, or a config.json")
    ] = "",
    model: Annotated[str, typer.Option(help="folder of a checkpoint of yours (default: the bundled model)")] = "",
    tokens: Annotated[int, typer.Option(help="new tokens to generate for each prompt and lap")] = 64,
    threads: Annotated[int, typer.Option(help="threads to compute with (0: torch's default)")] = 0,
    weights: Annotated[Weights, typer.Option(help="format of the optimised weights")] = "int8",
    kv_cache: Annotated[KvCache, typer.Option(help="format of the optimised KV cache")] = "int8",
) -> None:
    """Run the same prompts through stock generate() and through the optimised one, then compare them in a table."""
    console = Console()
    transformers_logging.disable_progress_bar()  # the steps show their own
    if threads > 0:
        torch.set_num_threads(threads)
    try:
        subject = _subject(shape, model, tokens, console)
        comparison = compare(subject, Choices(weights, kv_cache, tokens), console)
    except ConfigError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(str(error), style="red", markup=False)
        raise typer.Exit(2) from None
    console.print(table_of(comparison))


def _subject(shape: str, model: str, tokens: int, console: Console) -> Subject:
    if shape and model:
        raise ConfigError(f"shape: expected --shape or --model, got both ('{shape}' and '{model}'); leave one out")
    if shape:
        with step(console, f"random weights for {shape}") as advance:
            return random_subject(shape, tokens, advance)
    with step(console, f"loading {model or 'the bundled model'}"):
        return checkpoint(Path(model), tokens) if model else bundled(tokens)
