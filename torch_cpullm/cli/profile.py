"""`torch-cpullm profile`: what one prefill and one token are spent on, so that the next bottleneck is seen."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

import torch_cpullm
from torch_cpullm.benchmark.profile import HOST, Step, profile
from torch_cpullm.benchmark.shapes import SHAPES, config_of, fill, meta_model
from torch_cpullm.benchmark.steps import step
from torch_cpullm.cli.mistakes import mistakes_in_words
from torch_cpullm.config import KvCache, Weights
from torch_cpullm.errors import ConfigError
from torch_cpullm.machine.probe import Roofline, roofline

_SHOWN = 0.002  # of a step; what takes less is added up in one row


def profile_command(  # noqa: PLR0913  (every option of the command)
    shape: Annotated[str, typer.Option(help=f"random weights: {', '.join(SHAPES)}, or a config.json")] = "llama-3.2-1b",
    model: Annotated[str, typer.Option(help="folder of a checkpoint of yours, instead of a shape")] = "",
    weights: Annotated[Weights, typer.Option(help="format of the weights")] = "int8",
    kv_cache: Annotated[KvCache, typer.Option(help="format of the KV cache")] = "int8",
    stock: Annotated[bool, typer.Option("--stock", help="the model as transformers has it")] = False,
    prompt: Annotated[int, typer.Option(help="tokens of the prompt", min=2)] = 512,
    tokens: Annotated[int, typer.Option(help="tokens to decode", min=1)] = 16,
    repetitions: Annotated[int, typer.Option(help="of each measurement; the median counts", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="threads to compute with (0: torch's default)")] = 0,
) -> None:
    """Show each operator's time, bytes and share of the machine's limits for one prefill and one decoded token."""
    console = Console()
    transformers_logging.disable_progress_bar()
    with mistakes_in_words():
        subject = _subject(shape, model, console)
        limit = getattr(subject.config, "max_position_embeddings", None)
        if limit and prompt + tokens > limit:
            raise ConfigError(f"prompt: expected at most {limit - tokens} for this model's context, got {prompt}")
        if not stock:
            with step(console, "optimising"):
                torch_cpullm.optimize(subject, weights=weights, kv_cache=kv_cache)
        team = threads or torch.get_num_threads()
        with step(console, "measuring"):
            steps = profile(subject, prompt, tokens, repetitions, team)
            limits = roofline(team)
    for one in steps:
        console.print(_table(one, limits))
    console.print(
        f"limits of {limits.threads} threads: {limits.read_bandwidth / 1e9:.0f} GB/s read, "
        f"{max(limits.bf16, limits.amx_bf16) / 1e12:.2f} TFLOP/s bf16, "
        f"{max(limits.int8, limits.amx_int8) / 1e12:.2f} TOP/s int8"
    )


def _subject(shape: str, model: str, console: Console) -> torch.nn.Module:
    if not model:
        with step(console, f"random weights for {shape}") as advance:
            return fill(meta_model(config_of(shape)), advance=advance)
    try:
        with step(console, f"loading {model}"):
            return AutoModelForCausalLM.from_pretrained(model, dtype="auto", local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model: expected the folder of a checkpoint, got '{model}' ({reason})") from error


def _table(one: Step, limits: Roofline) -> Table:
    table = Table(title=f"{one.name}: {1e3 * one.seconds:.2f} ms")
    table.add_column("operator", no_wrap=True)
    for heading in ("calls", "ms", "of the step", "MB", "of read", "GOP", "of peak"):
        table.add_column(heading, justify="right", no_wrap=True)
    small = [spent for spent in one.spent if spent.seconds < _SHOWN * one.seconds and spent.name != HOST]
    for spent in one.spent:
        if spent in small:
            continue
        table.add_row(
            spent.name,
            f"{spent.calls:.0f}",
            f"{1e3 * spent.seconds:.3f}",
            f"{spent.seconds / one.seconds:.1%}",
            f"{spent.bytes / 1e6:,.1f}" if spent.bytes else "",
            f"{spent.bandwidth_share(limits):.0%}" if spent.bytes else "",
            f"{spent.operations / 1e9:,.1f}" if spent.operations else "",
            f"{spent.peak_share(limits):.0%}" if spent.operations else "",
        )
    total = sum(spent.seconds for spent in small)
    calls = sum(spent.calls for spent in small)
    table.add_row(f"{len(small)} others", f"{calls:.0f}", f"{1e3 * total:.3f}", f"{total / one.seconds:.1%}", *[""] * 4)
    return table
