"""The next token: one operator against transformers' own processors, softmax and multinomial, by turns.

    python -m bench.bench_sampler                 one thread, three vocabularies, every combination (30 seconds)
    python -m bench.bench_sampler --threads 2

Rows are normal with deviation 3, which is flatter than what a trained model gives, plus ten likely tokens; 1000 tokens
have been seen. Writes bench/results/sampler-LEVEL.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bench.header import header
from torch_cpullm.benchmark.steps import step
from torch_cpullm.generate.sampler import FusedSampler
from torch_cpullm.ops.introspect import isa_level

ROOT = Path(__file__).parent.parent
VOCABULARIES = (32_000, 128_256, 151_936)
SEEN = 1000


def combinations() -> dict[str, list[LogitsProcessor]]:
    """Every filter alone, and those that people use together."""
    penalty, temperature = RepetitionPenaltyLogitsProcessor(1.1), TemperatureLogitsWarper(0.8)
    top_k, top_p, min_p = TopKLogitsWarper(50), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)
    return {
        "none": [],
        "penalty": [penalty],
        "temperature": [temperature],
        "top-k": [top_k],
        "top-p": [top_p],
        "min-p": [min_p],
        "temperature, top-p": [temperature, top_p],
        "temperature, min-p": [temperature, min_p],
        "temperature, top-k, top-p": [temperature, top_k, top_p],
        "penalty, temperature, top-p, min-p": [penalty, temperature, top_p, min_p],
        "all five": [penalty, temperature, top_k, top_p, min_p],
    }


@dataclass(frozen=True)
class Row:
    """Microseconds a token, over all laps."""

    vocabulary: int
    filters: str
    ours_us: list[float]
    stock_us: list[float]


def stock(processors: LogitsProcessorList, ids_BS: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
    """What generate() of transformers does behind a forward pass."""
    scores_BV = processors(ids_BS, logits_BV.to(copy=True, dtype=torch.float32))
    return torch.multinomial(torch.nn.functional.softmax(scores_BV, dim=-1), num_samples=1).squeeze(1)


def lap(call: Callable[[], object], calls: int) -> float:
    """Microseconds a call, the mean of a short burst."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return round((time.perf_counter() - start) / calls * 1e6, 1)


def measure(vocabulary: int, name: str, laps: int) -> Row:
    """Time one combination, the two in alternating order."""
    processors = LogitsProcessorList(combinations()[name])
    sampler = FusedSampler.of(processors)
    if sampler is None:
        raise RuntimeError(f"{name}: the fused sampler does not know these processors")
    logits_BV = torch.randn(1, vocabulary) * 3
    logits_BV[0, torch.randint(0, vocabulary, (10,))] += 10
    ids_BS = torch.randint(0, vocabulary, (1, SEEN))
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: sampler.draw(ids_BS, logits_BV),
        "stock": lambda: stock(processors, ids_BS, logits_BV),
    }
    times: dict[str, list[float]] = {"ours": [], "stock": []}
    for turn in range(laps + 1):
        for who in ("ours", "stock") if turn % 2 else ("stock", "ours"):
            times[who].append(lap(calls[who], 10 if who == "ours" else 2))
    return Row(vocabulary, name, times["ours"][1:], times["stock"][1:])


def print_table(console: Console, rows: list[Row]) -> None:
    """One line a combination: medians, the shortest lap in brackets."""
    table = Table(title=f"microseconds a token, {torch.get_num_threads()} thread(s), {isa_level()}: median (minimum)")
    for heading in ("V", "filters", "torch_cpullm", "transformers", "faster"):
        table.add_column(heading, justify="left" if heading == "filters" else "right")
    for row in rows:
        ours, theirs = statistics.median(row.ours_us), statistics.median(row.stock_us)
        cells = (f"{ours:,.0f} ({min(row.ours_us):,.0f})", f"{theirs:,.0f} ({min(row.stock_us):,.0f})")
        table.add_row(f"{row.vocabulary:,}", row.filters, *cells, f"{theirs / ours:.0f} x")
    console.print(table)


def main(
    threads: Annotated[int, typer.Option(help="threads of torch")] = 1,
    laps: Annotated[int, typer.Option(help="laps of each contender")] = 40,
) -> None:
    """Time every combination at every vocabulary; print one table."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    console = Console(width=120)
    work = [(vocabulary, name) for vocabulary in VOCABULARIES for name in combinations()]
    rows: list[Row] = []
    with step(console, "sampling") as advance:
        for vocabulary, name in work:
            rows.append(measure(vocabulary, name, laps))
            advance(len(rows), len(work))
    print_table(console, rows)
    result: dict[str, Any] = {**header(), "threads": threads, "seen": SEEN, "rows": [vars(row) for row in rows]}
    file = ROOT / "bench" / "results" / f"sampler-{isa_level()}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {file.relative_to(ROOT)}")


if __name__ == "__main__":
    typer.run(main)
