"""Attention against the machine's limits and against torch: the paper's table, and decoding over a cache.

    python -m bench.bench_attention             prefill, 256 to 16384 tokens of 32 heads of 128 (about 15 minutes)
    python -m bench.bench_attention --decode    one and several query rows over a cached past (about 4 minutes)

Writes bench/results/attention-LEVEL.json and docs/attention-LEVEL.png, or attention-decode-LEVEL.json, LEVEL being the
instruction set. Every figure is a median of ratios taken inside units (interleave.py). Queries and results are bf16;
our keys and values lie in pages, int8 or bf16; in decoding those of all layers and of more sequences than caches hold.
"""

from __future__ import annotations

import gc
import json
import random
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn.functional import scaled_dot_product_attention

from bench.contest import Call, rotated
from bench.header import header
from bench.interleave import Case, main_placement, median_of, run_unit
from bench.layers import Layers, Shape
from bench.picture_attention import draw_prefill
from torch_cpullm.benchmark.steps import step
from torch_cpullm.formats import KvFormat
from torch_cpullm.machine.probe import cold_read
from torch_cpullm.ops import attention
from torch_cpullm.ops import probe as probes
from torch_cpullm.ops.attention import KvPages
from torch_cpullm.ops.introspect import isa_level, scratch_bytes

ROOT = Path(__file__).parent.parent
LLAMA_2_7B, LLAMA_3_2_1B = Shape("Llama-2-7B", 32, 32, 128, 32), Shape("Llama-3.2-1B", 32, 8, 64, 16)
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
FORMATS: tuple[KvFormat, ...] = ("int8", "bf16")
METHODS = {"slim": 1 << 40, "flash": 0}
QUERY_ROWS = (1, 2, 4, 8, 16)
UNEVEN = (32, 16, 8, 4, 1, 1, 1, 1)  # lengths of a batch, in parts of their sum
DEPTHS = (2048, 8192)


def by_method(call: Call, slim_tokens: int) -> Call:
    """`call` with the method set for it."""

    def run() -> object:
        attention.set_slim_tokens(slim_tokens)
        return call()

    return run


def prefill_case(length: int, threads: int) -> tuple[Case, dict[str, int]]:
    """Both methods over both formats beside torch's; and the working memory of each."""
    shape = LLAMA_2_7B
    query_BTHC = torch.randn(1, length, shape.heads, shape.channels).bfloat16()
    calls: dict[str, Call] = {}
    scratch: dict[str, int] = {}
    for format in FORMATS:
        kv = Layers(shape, 1, length, length, format, count=1).views[0]
        for method, slim_tokens in METHODS.items():
            one = by_method(lambda kv=kv: attention.paged_attention(query_BTHC, kv, shape.scale), slim_tokens)
            one()
            scratch[f"{format} {method}"] = scratch_bytes()
            calls[f"{format} {method}"] = one
    query_BHTC = query_BTHC.transpose(1, 2).contiguous()
    key, value = torch.randn(2, 1, shape.kv_heads, length, shape.channels).bfloat16().unbind()
    calls["torch"] = lambda: scaled_dot_product_attention(query_BHTC, key, value, is_causal=True)
    measures = {"peak": lambda: probes.peak("bf16", threads, 10)}
    if probes.peak("amx bf16", threads, 1):
        measures["amx"] = lambda: probes.peak("amx bf16", threads, 10)
    return Case(calls, measures), scratch


def prefill(threads: int, units: int, console: Console) -> dict[str, Any]:
    """Measure and tabulate the paper's table."""
    table = Table(title=f"prefill, {LLAMA_2_7B}, {threads} threads: GFLOP/s, the causal half counted")
    for heading in ("tokens", *(f"{f} {m}" for f in FORMATS for m in METHODS), "torch", "vector peak", "int8: x torch"):
        table.add_column(heading, justify="right")
    order = random.Random(0)
    rows: list[dict[str, Any]] = []
    with step(console, "prefill") as advance:
        for index, length in enumerate(LENGTHS):
            case, scratch = prefill_case(length, threads)
            for done in range(units if length <= 2048 else max(3, units // 4)):
                run_unit(case, order)
                advance(index * units + done + 1, len(LENGTHS) * units)
            rows.append(prefill_row(case, length, threads, scratch))
            table.add_row(*prefill_cells(rows[-1]))
            del case
            gc.collect()
    console.print(table)
    return {"threads": threads, "shape": str(LLAMA_2_7B), "prefill": rows}


def prefill_row(case: Case, length: int, threads: int, scratch: dict[str, int]) -> dict[str, Any]:
    """Speeds, shares and ratios of one length."""
    shape, place = LLAMA_2_7B, main_placement([case])
    operations = 2.0 * shape.heads * shape.channels * length**2  # two products over half a square
    ours = [name for name in case.calls if name != "torch"]
    return {
        "tokens": length,
        "threads": threads,
        "placement": place,
        "seconds": {name: median_of(case, place, lambda u, n=name: u[n]) for name in case.calls},
        "gflops": {name: median_of(case, place, lambda u, n=name: operations / u[n] / 1e9) for name in case.calls},
        "share_of_peak": {n: median_of(case, place, lambda u, n=n: operations / u[n] / u["peak"]) for n in ours},
        "x_torch": {n: median_of(case, place, lambda u, n=n: u["torch"] / u[n]) for n in ours},
        "slim_over_flash": {
            f: median_of(case, place, lambda u, f=f: u[f"{f} flash"] / u[f"{f} slim"]) for f in FORMATS
        },
        "peak_gflops": median_of(case, place, lambda u: u["peak"] / 1e9),
        "amx_gflops": median_of(case, place, lambda u: u["amx"] / 1e9) if "amx" in case.measures else None,
        "scratch_bytes": scratch,
    }


def prefill_cells(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    speeds = [f"{row['gflops'][f'{f} {m}']:.0f}" for f in FORMATS for m in METHODS]
    best = max(row["x_torch"][f"int8 {m}"] for m in METHODS)
    return [str(row["tokens"]), *speeds, f"{row['gflops']['torch']:.0f}", f"{row['peak_gflops']:.0f}", f"{best:.2f}"]


def all_layers(query_BTHC: torch.Tensor, shape: Shape, batches: list[list[KvPages]]) -> Call:
    """Attention of one step in all layers, of the next batch each time."""
    return rotated(lambda kvs: [attention.paged_attention(query_BTHC, kv, shape.scale) for kv in kvs], batches)


def decode_cases(threads: int) -> dict[tuple[Shape, int, int], tuple[Case, int]]:
    """One query row, and for a single sequence several, over pages that come from memory: all layers of a model."""
    cases = {}
    for shape in (LLAMA_2_7B, LLAMA_3_2_1B):
        for batch, depth in ((1, DEPTHS[0]), (1, DEPTHS[1]), (8, DEPTHS[0])):
            layers = Layers(shape, batch, depth + max(QUERY_ROWS), 1, "int8")
            calls: dict[str, Call] = {}
            for rows in QUERY_ROWS if batch == 1 else (1,):
                query_BTHC = torch.randn(batch, rows, shape.heads, shape.channels).bfloat16()
                calls[f"{rows} rows"] = all_layers(query_BTHC, shape, layers.at(depth))
            if batch == len(UNEVEN):
                past = [depth * batch * part // sum(UNEVEN) - 1 for part in UNEVEN]
                calls["uneven"] = all_layers(query_BTHC, shape, layers.uneven(past))
            count = layers.bytes_of(depth + 1)
            measures = {"read": lambda n=count: cold_read(threads, n)}
            cases[shape, batch, depth] = Case(calls, measures, [layers.pool.pages]), count
    return cases


def decode(threads: int, units: int, console: Console) -> list[dict[str, Any]]:
    """Measure and tabulate the bandwidth of decoding."""
    cases, order = decode_cases(threads), random.Random(0)
    with step(console, f"decode, {threads} threads") as advance:
        for done in range(units):
            for index, (case, _) in enumerate(cases.values()):
                run_unit(case, order)
                advance(done * len(cases) + index + 1, units * len(cases))
    place = main_placement([case for case, _ in cases.values()])
    table = Table(title=f"decode over INT8 pages, {threads} threads, placement '{place}'")
    several = (f"t({n})/t(1)" for n in QUERY_ROWS[1:])
    for heading in ("heads", "batch", "depth", "codes and scales", "of read", *several, "uneven"):
        table.add_column(heading, justify="right")
    rows = []
    for (shape, batch, depth), (case, count) in cases.items():
        row = {
            "threads": threads, "shape": str(shape), "batch": batch, "depth": depth, "placement": place,
            "gb_per_s": median_of(case, place, lambda u, c=count: c / u["1 rows"] / 1e9),
            "share_of_read": median_of(case, place, lambda u, c=count: c / u["1 rows"] / u["read"]),
            "t": {n: median_of(case, place, lambda u, n=n: u[f"{n} rows"] / u["1 rows"])
                  for n in QUERY_ROWS[1:] if f"{n} rows" in case.calls},
            "uneven": median_of(case, place, lambda u: u["uneven"] / u["1 rows"]) if "uneven" in case.calls else None,
        }  # fmt: skip
        rows.append(row)
        table.add_row(
            str(shape), str(batch), str(depth), f"{row['gb_per_s']:.1f} GB/s", f"{row['share_of_read']:.0%}",
            *(f"{row['t'][n]:.2f}" if n in row["t"] else "" for n in QUERY_ROWS[1:]),
            f"{row['uneven']:.2f}" if row["uneven"] else "",
        )  # fmt: skip
    console.print(table)
    return rows


def main(
    decoding: Annotated[bool, typer.Option("--decode", help="decoding instead of prefill")] = False,
    units: Annotated[int, typer.Option(help="units of each case; long prefills get a quarter")] = 9,
    threads: Annotated[int, typer.Option(help="threads; 0: two, and for --decode one as well")] = 0,
) -> None:
    """Measure, print, and write the result as JSON."""
    console = Console(width=140)
    result = header()
    before = attention.slim_tokens()
    if decoding:
        result["decode"] = []
        for count in (threads,) if threads else (2, 1):
            torch.set_num_threads(count)
            result["decode"] += decode(count, units, console)
    else:
        torch.set_num_threads(threads or 2)
        result |= prefill(threads or 2, units, console)
        draw_prefill(result, ROOT / "docs" / f"attention-{isa_level()}.png")
    attention.set_slim_tokens(before)
    file = ROOT / "bench" / "results" / f"attention{'-decode' if decoding else ''}-{isa_level()}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {file.relative_to(ROOT)}")


if __name__ == "__main__":
    typer.run(main)
