"""Stock against optimised, on one subject: the same prompts, the same laps, the same held-out windows."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch_cpullm
from torch_cpullm.benchmark.steps import step
from torch_cpullm.benchmark.timing import Speed, race
from torch_cpullm.demo.quality import perplexity, windows_of
from torch_cpullm.demo.text import agreement, write

if TYPE_CHECKING:
    from rich.console import Console

    from torch_cpullm.benchmark.causal_lm import CausalLM
    from torch_cpullm.config import KvCache, Weights
from torch_cpullm.demo.subject import Subject

STOCK, OURS = "stock", "torch_cpullm"
BUDGET_S = 45.0  # of timing for both together: with loading and text a demo of the bundled model takes about a minute
HEADROOM = 1 << 30  # bytes left for activations, logits and the system


@dataclass(frozen=True)
class Choices:
    """What optimize() is told, and how much to generate."""

    weights: Weights
    kv_cache: KvCache
    new_tokens: int


@dataclass(frozen=True)
class Side:
    """One column of the table."""

    label: str
    speed: Speed
    perplexity: float | None
    weight_bytes: int
    kv_bytes_per_token: float


@dataclass(frozen=True)
class Comparison:
    """Both columns, and what one must know to read them."""

    subject: str
    stock: Side
    ours: Side
    interleaved: bool
    scored_tokens: int
    swapped: int
    left_alone: int


def fits_twice(subject: Subject, available: int | None = None) -> bool:
    """Whether a copy of the subject's model fits in memory beside it, together with the packed form of the copy."""
    free = _available() if available is None else available
    return free > 2 * subject.weight_bytes + HEADROOM  # the copy and its packed form, which for bf16 is as large


def _available() -> int:
    """Bytes that can be had without swapping, as the kernel estimates them."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def compare(subject: Subject, choices: Choices, console: Console) -> Comparison:
    """Run everything the table needs; streams text and progress to `console`.

    The optimised model is a copy where memory allows, so that both can take turns; otherwise stock is measured to the
    end and then optimised in place (`Comparison.interleaved` says which).
    """
    return (
        _side_by_side(subject, choices, console)
        if fits_twice(subject)
        else _one_after_the_other(subject, choices, console)
    )


def _side_by_side(subject: Subject, choices: Choices, console: Console) -> Comparison:
    stock_text = _write(STOCK, subject.model, subject, choices, console)
    with step(console, "optimising a copy"):
        ours = optimise(copy.deepcopy(subject.model), choices)
    _compare_text(stock_text, _write(OURS, ours, subject, choices, console), console)
    models = {STOCK: subject.model, OURS: ours}
    speeds = _race(models, subject, choices, console)
    scores = {name: _score(name, model, subject, console) for name, model in models.items()}
    return _comparison(subject, choices, ours, speeds, scores, interleaved=True)


def _one_after_the_other(subject: Subject, choices: Choices, console: Console) -> Comparison:
    model = subject.model
    stock_text = _write(STOCK, model, subject, choices, console)
    speeds = _race({STOCK: model}, subject, choices, console)
    scores = {STOCK: _score(STOCK, model, subject, console)}
    with step(console, "optimising in place"):
        optimise(model, choices)
    _compare_text(stock_text, _write(OURS, model, subject, choices, console), console)
    speeds |= _race({OURS: model}, subject, choices, console)
    scores[OURS] = _score(OURS, model, subject, console)
    return _comparison(subject, choices, model, speeds, scores, interleaved=False)


def optimise(model: CausalLM, choices: Choices) -> CausalLM:
    """Make the call this project is about."""
    torch_cpullm.optimize(model, weights=choices.weights, kv_cache=choices.kv_cache)
    return model


def _write(name: str, model: CausalLM, subject: Subject, choices: Choices, console: Console) -> list[list[int]] | None:
    if subject.text is None:
        return None
    console.rule(f"{name} generate()", align="left")
    return write(model, subject.text, choices.new_tokens, console)


def _compare_text(stock: list[list[int]] | None, ours: list[list[int]] | None, console: Console) -> None:
    if stock is not None and ours is not None:
        console.print(agreement(stock, ours), style="dim")
        console.rule()


def _race(models: dict[str, CausalLM], subject: Subject, choices: Choices, console: Console) -> dict[str, Speed]:
    title = f"timing {' and '.join(models)} by turns" if len(models) > 1 else f"timing {next(iter(models))}"
    with step(console, title) as advance:
        return race(models, subject.prompt_BT, choices.new_tokens, BUDGET_S * len(models) / 2, advance)


def _score(name: str, model: CausalLM, subject: Subject, console: Console) -> float | None:
    if subject.text is None:
        return None
    with step(console, f"perplexity of {name}") as advance:
        return perplexity(model, windows_of(subject.text.held_out_T, limit=subject.windows), advance=advance)


def _comparison(
    subject: Subject,
    choices: Choices,
    ours: CausalLM,
    speeds: dict[str, Speed],
    scores: dict[str, float | None],
    interleaved: bool,
) -> Comparison:
    told = torch_cpullm.explain(ours)
    windows_NT = None if subject.text is None else windows_of(subject.text.held_out_T, limit=subject.windows)
    return Comparison(
        subject=subject.name,
        stock=Side(
            f"{STOCK} {subject.dtype}",
            speeds[STOCK],
            scores[STOCK],
            told.weight_bytes_before,
            told.kv_bytes_per_token_before,
        ),
        ours=Side(
            f"{OURS}\n{choices.weights}, {choices.kv_cache} KV",
            speeds[OURS],
            scores[OURS],
            told.weight_bytes_after,
            told.kv_bytes_per_token,
        ),
        interleaved=interleaved,
        scored_tokens=0 if windows_NT is None else windows_NT.numel() - len(windows_NT),
        swapped=len(told.swapped),
        left_alone=len(told.left_alone),
    )
