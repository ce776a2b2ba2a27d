"""Loading: from_pretrained() that quantises, and load(): seconds and memory, each in a process of its own.

    python -m bench.bench_loading                               Llama-3.2-1B
    python -m bench.bench_loading --shape llama-2-13b --weights int4 --work FOLDER    26 GB are written and read there
    python -m bench.bench_loading --ranks 2                     from_pretrained() by one rank and by two: memory of each
                                                                of a checkpoint and of the folder it is saved to

"peak" is the most memory that the process had, mapped files included, above what importing takes; "packed" what the
model takes in the end. "first token" counts from the call of load() to the first of generate(), after eight of prompt.
Of ranks, "peak" is what is the process's own: the files are mapped by all of them, and their pages do not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

import torch_cpullm
from torch_cpullm.benchmark.checkpoint import random_checkpoint
from torch_cpullm.benchmark.steps import step
from torch_cpullm.config import cache_folder
from torch_cpullm.ops.comm import all_gather

if TYPE_CHECKING:
    from torch_cpullm.config import Weights

ROOT = Path(__file__).parent.parent
IDS = torch.arange(10, 18)[None]
LOOK_S = 0.005  # a weight is packed in 10 ms and more
JOIN_S = 600.0


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def quantise(checkpoint: str, weights: str, packed: str) -> dict[str, Any]:
    """Load a checkpoint quantised, save it packed, and load that."""
    before, start = _memory("VmRSS"), time.perf_counter()
    config = torch_cpullm.CpuLlmConfig(weights=cast("Weights", weights))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, quantization_config=config)
    seconds = time.perf_counter() - start
    peak = _memory("VmHWM") - before
    start = time.perf_counter()
    torch_cpullm.save(model, packed)
    stored = torch_cpullm.explain(model).weight_bytes_after
    return {"load": seconds, "peak": peak, "packed": stored, "save": time.perf_counter() - start}


@contextmanager
def own_peak() -> Iterator[list[int]]:
    """What this process takes at most while the block runs, above what it has before: pages of files do not count.

    The kernel keeps such a mark for all pages only (VmHWM), so a thread looks.
    """
    over = threading.Event()
    before, seen = _own(), [0]

    def look() -> None:
        while not over.wait(LOOK_S):
            seen[0] = max(seen[0], _own() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _own() -> int:
    return _memory("RssAnon") + _memory("RssShmem")


def load_part(folder: str, weights: str = "", packed: str = "") -> None:
    """Load this rank's part of a folder; rank 0 prints [seconds, peak, packed] of every rank.

    With `weights` it is a checkpoint, to be quantised; a model that is whole is then written to `packed`.
    """
    world = torch_cpullm.distributed.init(JOIN_S)
    # Not None where there is nothing to choose: transformers takes that for a wish, and finds no weights.
    how = {"quantization_config": torch_cpullm.CpuLlmConfig(weights=cast("Weights", weights))} if weights else {}
    start = time.perf_counter()
    with own_peak() as peak:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **how)
    seconds = time.perf_counter() - start
    if weights and world.size == 1:
        model.save_pretrained(packed)
    own = torch.tensor([seconds, *peak, torch_cpullm.explain(model).weight_bytes_after], dtype=torch.float64)
    of_ranks = all_gather(own, world.group) if world.group else own[None]
    if world.rank == 0:
        print(json.dumps(of_ranks.tolist()))


def load(packed: str) -> dict[str, Any]:
    """Load what was saved, and generate one token."""
    start = time.perf_counter()
    model = torch_cpullm.load(packed)
    loaded = time.perf_counter() - start
    model.generate(IDS, max_new_tokens=1, do_sample=False)
    return {"load": loaded, "first token": time.perf_counter() - start, "peak": _memory("VmHWM")}


def _apart(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = _printed([sys.executable, "-m", "bench.bench_loading", "--one", *arguments])
    return found


def _printed(command: Sequence[str]) -> Any:
    """What the last line of a command's output says."""
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def _of_ranks(checkpoint: Path, weights: str, most: int) -> Table:
    """One rank, and `most` of them, each loading its part of the checkpoint and of what one rank has saved packed."""
    mapped = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    table = Table(title=f"{checkpoint.name}, {mapped / (1 << 30):.2f} GiB, {weights}: from_pretrained() by ranks")
    for heading in ("of", "ranks", "rank", "seconds", "peak", "packed", "peak above packed"):
        table.add_column(heading, justify="right")
    folder = str(checkpoint.with_name(f"{checkpoint.name}.packed-{weights}"))
    for name, arguments in {"checkpoint": (str(checkpoint), weights, folder), "packed folder": (folder,)}.items():
        for ranks in (1, most):
            launch = [sys.executable, "-m", "torch_cpullm.cli", "launch", "--quiet", "--sockets", str(ranks)]
            threads = ["--threads", str(max(1, (os.cpu_count() or 1) // most))]  # as many of one rank as of each
            found = _printed([*launch, *threads, "-m", "bench.bench_loading", "--part", *arguments])
            for rank, (seconds, peak, packed) in enumerate(found):
                sizes = (f"{size / (1 << 30):.2f} GiB" for size in (peak, packed, peak - packed))
                table.add_row(name, str(ranks), str(rank), f"{seconds:.1f}", *sizes)
    return table


def main(
    arguments: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    shape: Annotated[str, typer.Option(help="a name of benchmark.shapes, or a config.json")] = "llama-3.2-1b",
    weights: Annotated[str, typer.Option(help="int8 or int4")] = "int8",
    work: Annotated[str, typer.Option(help="folder for the checkpoint and the packed model")] = "",
    ranks: Annotated[int, typer.Option(min=1, help="compare from_pretrained() of one rank with so many")] = 1,
    one: Annotated[bool, typer.Option("--one", hidden=True)] = False,
    part: Annotated[bool, typer.Option("--part", hidden=True)] = False,
) -> None:
    """Write the checkpoint where there is none, load it quantised, save, load, and print what each took."""
    if part:
        load_part(*(arguments or []))
        return
    if one:
        parts = arguments or []
        print(json.dumps(quantise(*parts) if len(parts) > 1 else load(*parts)))
        return
    console = Console(width=110)
    with step(console, f"random weights for {shape}") as advance:
        checkpoint = random_checkpoint(shape, Path(work) if work else cache_folder() / "bench", advance)
    if ranks > 1:
        console.print(_of_ranks(checkpoint, weights, ranks))
        return
    packed = str(checkpoint.with_name(f"{checkpoint.name}.loaded-{weights}"))
    with step(console, "from_pretrained(), quantised while loading"):
        first = _apart(str(checkpoint), weights, packed)
    with step(console, "load()"):
        again = [_apart(packed) for _ in range(3)][-1]  # by then the file is in the system's memory
    table = Table(title=f"{shape}, {weights}")
    for heading in ("", "seconds", "first token", "peak", "packed", "peak above packed"):
        table.add_column(heading, justify="right")
    gib = 1 << 30
    sizes = (first["peak"] / gib, first["packed"] / gib, (first["peak"] - first["packed"]) / gib)
    table.add_row("from_pretrained", f"{first['load']:.1f}", "", *(f"{size:.2f} GiB" for size in sizes))
    table.add_row("save", f"{first['save']:.1f}", *[""] * 4)
    times = (f"{again['load']:.2f}", f"{again['first token']:.2f} s")
    table.add_row("load", *times, f"{again['peak'] / gib:.2f} GiB", "", "")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
