"""Microseconds of an all_reduce_ between ranks of this host, by every transport that opens, by turns.

    python -m bench.bench_collectives                 2 ranks, one on each of the first cores (30 seconds)
    python -m bench.bench_collectives --ranks 4

Messages of a decode step: 1 and 8 rows of hidden size 2048 to 8192 in bf16 and float32, and 4 MB. A lap is a burst
of calls from Python, and counts by the median of its slowest rank. "in layers": the same sum over shared memory as the
blocks of a layer call it (bench/inside_layers.py). Writes bench/results/collectives-N.json.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.distributed import PrefixStore, Store

from bench.header import header
from bench.inside_layers import sums_us
from torch_cpullm.distributed.ccl import open_ccl
from torch_cpullm.distributed.gloo import open_gloo
from torch_cpullm.distributed.shm import open_shm
from torch_cpullm.errors import CollectiveError
from torch_cpullm.ops.comm import all_reduce_, barrier
from torch_cpullm.testing.ranks import run_ranks

ROOT = Path(__file__).parent.parent
MESSAGES = [
    *((dtype, rows, hidden) for dtype in ("bfloat16", "float32") for rows in (1, 8) for hidden in (2048, 4096, 8192)),
    ("bfloat16", 512, 4096),
    ("float32", 256, 4096),
]
ROWS_OF_STEPS = 8
BURST_S, LEAST_IN_BURST, MOST_IN_BURST = 0.02, 12, 500
PATIENCE_S = 60.0
IN_LAYERS = "in layers"

Opener = Callable[[Store, int, int, float], int]


def transports() -> dict[str, Opener]:
    """How each transport's group is opened: (store, rank, size, timeout) -> number."""
    return {"shm": open_shm, "ccl": open_ccl, "gloo": open_gloo}


def opened(rank: int, size: int, store: Store) -> dict[str, int]:
    """The groups that open here, by transport."""
    groups = {}
    for name, opener in transports().items():
        with suppress(CollectiveError):  # raised on all ranks alike
            groups[name] = opener(PrefixStore(name, store), rank, size, PATIENCE_S)
    return groups


def burst_us(x: torch.Tensor, group: int, calls: int) -> float:
    """Median microseconds of `calls` calls that start together."""
    barrier(group)
    spent = []
    for _ in range(calls):
        start = time.perf_counter()
        all_reduce_(x, group)
        spent.append(time.perf_counter() - start)
    return 1e6 * statistics.median(spent)


def measure(rank: int, size: int, store: Store, laps: int) -> dict[str, list[list[float]]]:
    """Microseconds of each lap of each message, by transport."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[rank % len(cpus)]})
    torch.set_num_threads(1)
    groups = opened(rank, size, store)
    found: dict[str, list[list[float]]] = {name: [[] for _ in MESSAGES] for name in groups}
    for index, (dtype, rows, hidden) in enumerate(MESSAGES):
        x = torch.zeros(rows, hidden, dtype=getattr(torch, dtype))
        calls = max(LEAST_IN_BURST, min(MOST_IN_BURST, int(BURST_S / (x.nbytes * 0.3e-9 + 5e-6))))
        for lap, name in itertools.product(range(laps + 1), groups):
            spent = burst_us(x, groups[name], calls)
            if lap:
                found[name][index].append(round(spent, 2))
    if "shm" in groups:
        steps = [(getattr(torch, dtype), rows, hidden) for dtype, rows, hidden in MESSAGES if rows <= ROWS_OF_STEPS]
        layers = [sums_us(rows, hidden, dtype, groups["shm"], laps) for dtype, rows, hidden in steps]
        found[IN_LAYERS] = [[us / 2 for us in laps_us] for laps_us in layers]
    return found


def main(
    ranks: Annotated[int, typer.Option(min=2, help="processes, each on one core while there are enough")] = 2,
    laps: Annotated[int, typer.Option(min=1, help="of each message and transport")] = 15,
    output: Annotated[Path | None, typer.Option(help="default: bench/results/collectives-RANKS.json")] = None,
) -> None:
    """Measure, print a table, write the laps."""
    console = Console(width=100)
    of_ranks: list[dict[str, list[list[float]]]] = run_ranks(measure, ranks, laps, timeout_s=1800.0)
    found = {
        name: [
            [max(lap) for lap in zip(*(of_rank[name][index] for of_rank in of_ranks), strict=True)]
            for index in range(len(of_ranks[0][name]))
        ]
        for name in of_ranks[0]
    }
    table = Table(title=f"all_reduce_ between {ranks} ranks, microseconds: median of {laps} laps (fastest)")
    for heading in ("message", "bytes", *found):
        table.add_column(heading, justify="left" if heading == "message" else "right")
    rows: list[dict[str, Any]] = []
    for index, (dtype, count, hidden) in enumerate(MESSAGES):
        size = count * hidden * getattr(torch, dtype).itemsize
        spent = {name: laps_us[index] for name, laps_us in found.items() if index < len(laps_us)}
        cells = [f"{statistics.median(laps_us):,.1f} ({min(laps_us):,.1f})" for laps_us in spent.values()]
        table.add_row(f"{dtype} {count} x {hidden}", f"{size:,}", *cells)
        rows.append({"dtype": dtype, "rows": count, "hidden": hidden, "bytes": size, "us": spent})
    console.print(table)
    target = output or ROOT / "bench" / "results" / f"collectives-{ranks}.json"
    target.write_text(json.dumps(header() | {"ranks": ranks, "messages": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
