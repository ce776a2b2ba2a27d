"""Decode on one core and on two ranks of a core each, against a model of it; then that model for larger machines.

    python -m bench.bench_scaling                   Llama-3.2-1B in bf16, INT8 and INT4, by turns (5 minutes)
    python -m bench.bench_scaling --weights int8    measures one format anew; the others stay as they are in the result
    python -m bench.bench_scaling --again           draw and print what was measured before

torch_cpullm/benchmark/scaling.py is the model. Its inputs are measured in the same laps, none of them from the time of
a step: the bandwidth of one core alone and of two at once, the share of it that linear layers reach when they are
called one by one on one core, a sum over the ranks inside of layers that are next to nothing, the exchange at a token's
end, and the host's time by bench_host's small models. Writes bench/results/scaling-LEVEL.json and scaling-LEVEL.png.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.header import header
from bench.outlook import PAPER_MS, outlook, outlook_table
from bench.picture_scaling import draw_scaling
from torch_cpullm.benchmark.scaling import Costs, Decoder, Step, step_time
from torch_cpullm.benchmark.shapes import config_of
from torch_cpullm.benchmark.steps import step
from torch_cpullm.ops.introspect import isa_level

ROOT = Path(__file__).parent.parent
SHAPE = "llama-3.2-1b"
FORMATS = ("bf16", "int8", "int4")


def measured(weights: str, laps: int) -> dict[str, Any]:
    """What two ranks of bench/scaling_ranks.py have seen, started as a user starts them."""
    launch = [sys.executable, "-m", "torch_cpullm.cli", "launch", "--sockets", "2", "--quiet"]
    command = [*launch, "-m", "bench.scaling_ranks", SHAPE, weights, str(laps)]
    environment = os.environ | {"TORCH_CPULLM_COMM": "shm"}
    environment.pop("OMP_NUM_THREADS", None)
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def costs_of(lap: dict[str, float], host: dict[str, float], ranks: int) -> Costs:
    """The model's inputs for one rank or two, from one lap."""
    return Costs(
        bandwidth=lap["bandwidth alone" if ranks == 1 else "bandwidth of each"],
        share=lap["share"],
        reduce_s=lap["sum_s"] if ranks > 1 else 0.0,
        exchange_s=lap["exchange_s"] if ranks > 1 else 0.0,
        layer_s=host["layer_s"],
        token_s=host["token_s"],
    )


def compare(decoder: Decoder, found: dict[str, Any], ranks: int) -> tuple[float, Step, float]:
    """Median milliseconds of a token, the model's for the lap in the middle of its own, and its error."""
    laps, read = found["laps"], found["bytes"][str(ranks)]
    steps = [step_time(decoder, read, costs_of(lap, found["host"], ranks)) for lap in laps]
    middle = sorted(steps, key=lambda each: each.seconds)[len(steps) // 2]
    seconds = statistics.median(lap[f"token_s of {ranks}"] for lap in laps)
    return 1e3 * seconds, middle, middle.seconds / seconds - 1


def comparison_table(decoder: Decoder, formats: dict[str, Any]) -> Table:
    """Measured and modelled, with the parts."""
    table = Table(title=f"{SHAPE}, milliseconds a token; medians")
    for heading in ("", "ranks", "measured", "model", "error", "memory", "sums", "host", "GB/s each", "share"):
        table.add_column(heading, justify="right")
    for weights, found in formats.items():
        for ranks in (1, 2):
            milliseconds, modelled, error = compare(decoder, found, ranks)
            parts = (modelled.memory_s, modelled.meetings_s, modelled.host_s)
            of_laps = [costs_of(lap, found["host"], ranks) for lap in found["laps"]]
            table.add_row(
                *(weights, str(ranks), f"{milliseconds:.2f}", f"{1e3 * modelled.seconds:.2f}", f"{error:+.1%}"),
                *(f"{1e3 * part:.2f}" for part in parts),
                f"{statistics.median(costs.bandwidth for costs in of_laps) / 1e9:.1f}",
                f"{statistics.median(costs.share for costs in of_laps):.2f}",
            )
    return table


def main(
    laps: Annotated[int, typer.Option(min=1, help="of each format")] = 7,
    weights: Annotated[list[str] | None, typer.Option(help="formats to measure (default: all)")] = None,
    again: Annotated[bool, typer.Option("--again", help="measure nothing: draw and print the last result")] = False,
    output: Annotated[Path | None, typer.Option(help="default: bench/results/scaling-LEVEL.json")] = None,
) -> None:
    """Measure, print two tables, write the laps, draw."""
    console = Console(width=110)
    target = output or ROOT / "bench" / "results" / f"scaling-{isa_level()}.json"
    wanted = () if again else weights or FORMATS
    known = json.loads(target.read_text(encoding="utf-8")) if again or (weights and target.exists()) else {}
    for format in wanted:
        with step(console, f"{format}: one rank and two, by turns"):
            known[format] = header() | {"shape": SHAPE} | measured(format, laps)
    result = {format: known[format] for format in FORMATS if format in known}
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    decoder = Decoder.of(config_of(SHAPE))
    console.print(comparison_table(decoder, result))
    ahead = outlook(result)
    console.print(outlook_table(ahead))
    points = {
        weights: [(ranks, *compare(decoder, found, ranks)[:2]) for ranks in (1, 2)] for weights, found in result.items()
    }
    draw_scaling(points, ahead, PAPER_MS, target.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
