"""What optimize() takes: seconds and memory, at the shape of Llama-3.2-1B with random weights.

    python -m bench.bench_packing                   INT8, INT4 and bf16 (about a minute)
    python -m bench.bench_packing --calibrate 32    INT4 by GPTQ as well, on that many texts of 512 tokens (minutes)

Each format has a process of its own, so that peaks are its own. "above" is the highest resident memory during
optimize() less that before it: what packing needs beside the model that it replaces.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import torch_cpullm
from torch_cpullm.benchmark.shapes import SEED, config_of, fill, meta_model
from torch_cpullm.benchmark.steps import step

FORMATS = ("int8", "int4", "bf16")
TOKENS = 512  # of a calibration text
ROOT = Path(__file__).parent.parent


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _stored(model: torch.nn.Module) -> int:
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def measure(shape: str, weights: str, texts: int) -> dict[str, Any]:
    """Build the model, optimize it, and say what that took."""
    model = fill(meta_model(config_of(shape)))
    largest, before = max(p.nbytes for p in model.parameters()), _stored(model)
    ids = torch.randint(0, config_of(shape).vocab_size, (texts, TOKENS), generator=torch.Generator().manual_seed(SEED))
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # forget the peak so far
    resident = _resident("VmRSS")
    start = time.perf_counter()
    torch_cpullm.optimize(model, weights, calibration=ids if texts else None)
    seconds = time.perf_counter() - start
    return {
        "weights": weights, "texts": texts, "seconds": seconds, "before": before, "after": _stored(model),
        "largest": largest, "above": _resident("VmHWM") - resident,
    }  # fmt: skip


def main(
    shape: Annotated[str, typer.Option(help="a name of benchmark.shapes, or a config.json")] = "llama-3.2-1b",
    calibrate: Annotated[int, typer.Option(help="texts for GPTQ; 0: rounding only")] = 0,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure each format in a process of its own and print a table."""
    if one:
        print(json.dumps(measure(shape, one, calibrate)))
        return
    console = Console(width=110)
    runs = [(weights, 0) for weights in FORMATS] + ([("int4", calibrate)] if calibrate else [])
    found = []
    with step(console, "one process for each format") as advance:
        for done, (weights, texts) in enumerate(runs):
            command = [sys.executable, "-m", "bench.bench_packing", "--shape", shape, "--one", weights]
            finished = subprocess.run(
                [*command, "--calibrate", str(texts)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
            )
            found.append(json.loads(finished.stdout.splitlines()[-1]))
            advance(done + 1, len(runs))
    table = Table(title=f"optimize(), {shape}, {torch.get_num_threads()} threads")
    for heading in ("weights", "seconds", "stored before", "after", "peak above", "largest weight"):
        table.add_column(heading, justify="right")
    for row in found:
        name = row["weights"] + (f", {row['texts']} texts" if row["texts"] else "")
        sizes = (f"{row[key] / 2**20:,.0f} MiB" for key in ("before", "after", "above", "largest"))
        table.add_row(name, f"{row['seconds']:.1f}", *sizes)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
