"""`torch-cpullm bench`: stock, ours in every format and the peers that are installed, on the same random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from torch_cpullm.benchmark.checkpoint import random_checkpoint
from torch_cpullm.benchmark.contest import Programme, contest
from torch_cpullm.benchmark.engines.roster import contenders
from torch_cpullm.benchmark.report import markdown, put_into
from torch_cpullm.benchmark.result import Result
from torch_cpullm.benchmark.shapes import SHAPES
from torch_cpullm.benchmark.steps import step
from torch_cpullm.cli.mistakes import mistakes_in_words
from torch_cpullm.config import cache_folder
from torch_cpullm.errors import ConfigError


def bench(  # noqa: PLR0913  (every option of the command)
    shape: Annotated[str, typer.Option(help=f"random weights: {', '.join(SHAPES)}, or a config.json")] = "llama-3.2-1b",
    model: Annotated[str, typer.Option(help="folder of a bf16 checkpoint of yours, instead of a shape")] = "",
    only: Annotated[str, typer.Option(help="contenders whose names contain one of these words: 'int4,Q4_0'")] = "",
    threads: Annotated[int, typer.Option(help="threads of each contender (0: torch's default)")] = 0,
    prefill: Annotated[str, typer.Option(help="tokens of prompts")] = "128,512,2048",
    depth: Annotated[str, typer.Option(help="tokens in the context that decoding starts from")] = "0,512,2048,8192",
    batch: Annotated[str, typer.Option(help="sequences decoded together, at depth 512")] = "1,4,8",
    tokens: Annotated[int, typer.Option(help="new tokens in each lap")] = 12,
    repetitions: Annotated[int, typer.Option(help="laps of each contender, for each kind of work")] = 5,
    work: Annotated[str, typer.Option(help="folder for checkpoints and what engines make of them")] = "",
    out: Annotated[str, typer.Option(help="folder for JSON, Markdown and pictures")] = "bench-results",
    readme: Annotated[str, typer.Option(help="a Markdown file whose table between the bench's marks is replaced")] = "",
) -> None:
    """Compare speed, memory and loading, repetition by repetition in turns; writes JSON, a report and pictures."""
    console = Console()
    transformers_logging.disable_progress_bar()
    with mistakes_in_words():
        programme = Programme(
            prefills=_numbers("prefill", prefill, 1),
            depths=_numbers("depth", depth, 0),
            batches=_numbers("batch", batch, 1),
            tokens=_at_least("tokens", tokens, 2),
            repetitions=_at_least("repetitions", repetitions, 1),
        )
        chosen = contenders(only)
        if not chosen:
            names = ", ".join(one.name for one in contenders())
            raise ConfigError(f"only: expected words of {names}; got '{only}'")
        checkpoint = Path(model) if model else _random(shape, work, console)
        team, folder = threads or torch.get_num_threads(), Path(out)
        result = contest(checkpoint, chosen, programme, team, console, lambda found: write(found, folder))
        if readme:
            put_into(Path(readme), [result])
    console.print(_table(result))
    for file in [*write(result, folder), *_draw(result, folder, console)]:
        console.print(f"written: {file}", highlight=False)


def _random(shape: str, work: str, console: Console) -> Path:
    folder = Path(work) if work else cache_folder() / "bench"
    with step(console, f"random weights for {shape}") as advance:
        return random_checkpoint(shape, folder, advance)


def write(result: Result, folder: Path) -> list[Path]:
    """The result as JSON and as Markdown. Returns what was written."""
    files = [folder / f"{_stem(result)}.json", folder / f"{_stem(result)}.md"]
    result.write(files[0])
    files[1].write_text(markdown(result), encoding="utf-8")
    return files


def _draw(result: Result, folder: Path, console: Console) -> list[Path]:
    try:
        from torch_cpullm.benchmark.picture import draw
    except ImportError:
        console.print("no picture: pip install matplotlib", style="yellow")
        return []
    picture = folder / f"{_stem(result)}.png"
    draw(result, picture)
    return [picture]


def _stem(result: Result) -> str:
    return f"generate-{result.shape}-{result.isa}"


def _numbers(name: str, text: str, least: int) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdigit() and int(word) >= least for word in words):
        raise ConfigError(f"{name}: expected whole numbers from {least} on, separated by commas, got '{text}'")
    return tuple(dict.fromkeys(int(word) for word in words))


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise ConfigError(f"{name}: expected at least {least}, got {value}")
    return value


def _table(result: Result) -> Table:
    works = list(dict.fromkeys(one.work for one in result.standings))
    table = Table(title=f"{result.shape}, tokens/s (share of bandwidth or of peak)")
    table.add_column("")
    for one in works:
        table.add_column(one.name, justify="right")
    found = {(one.contender, one.work): one for one in result.standings}
    for name in result.entries:
        cells = [found.get((name, one)) for one in works]
        table.add_row(name, *(f"{cell.tokens_s:.1f} ({cell.share:.0%})" if cell else "" for cell in cells))
    return table
