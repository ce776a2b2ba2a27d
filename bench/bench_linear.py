"""Linear layers against the machine's limits and against torch, from one row to thousands.

    python -m bench.bench_linear            the limits: 1, 8, 16, 512, 2048 rows; two threads and one (about 8 minutes)
    python -m bench.bench_linear --sweep    time against rows, and odd sizes against their neighbours (about 4 minutes)

Writes bench/results/linear-LEVEL.json and .md (or linear-sweep-LEVEL.json and docs/linear-LEVEL.png), LEVEL being the
instruction set: amx, avx512, avx2. Every figure is a median of ratios taken inside units of some tens of milliseconds
(interleave.py), over the units in the placement that most had.
"""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.contest import Call, rotated
from bench.header import header
from bench.interleave import Case, main_placement, median_of, run_unit
from bench.picture_linear import draw_sweep
from bench.report_linear import write_report
from bench.rivals import Rivals
from torch_cpullm.benchmark.steps import step
from torch_cpullm.formats import BF16, INT4, INT8, WeightFormat
from torch_cpullm.machine.probe import cold_bytes, cold_read
from torch_cpullm.ops import linear
from torch_cpullm.ops import probe as probes
from torch_cpullm.ops.introspect import isa_level

ROOT = Path(__file__).parent.parent
MATRICES_KN = [(4096, 4096), (2048, 8192), (4096, 11008)]
FORMATS = {"bf16": BF16, "int8": INT8, "int4": INT4, "int4 g128": WeightFormat("int4", "int8", 128)}
FEW, MANY = (1, 8, 16), (512, 2048)
SWEEP_ROWS = (1, 2, 3, 4, 6, 8, 12, 15, 16, 17, 18, 20, 24, 28, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096)
# Odd sizes beside even ones: (K, N, rows), each against the two that surround it.
ODD = {
    "K = 2000": [(1984, 4096, 1), (2000, 4096, 1), (2048, 4096, 1)],
    "N = 1001": [(4096, 960, 1), (4096, 1001, 1), (4096, 1024, 1)],
    "rows = 17": [(4096, 4096, 16), (4096, 4096, 17), (4096, 4096, 18)],
    "896 x 4864": [(896, 4864, 1), (1024, 4864, 1)],
    "4096 x 512": [(4096, 512, 1), (4096, 576, 1)],
}


@functools.cache
def matrix(columns: int, depth: int) -> torch.Tensor:
    """Random bf16 weights, normal(0, 0.02)."""
    generator = torch.Generator().manual_seed(0)
    return torch.empty(columns, depth).normal_(0.0, 0.02, generator=generator).to(torch.bfloat16)


@functools.lru_cache(maxsize=16)
def packed_copies(size_KN: tuple[int, int], format: WeightFormat) -> list[torch.Tensor]:
    """Packed anew as often as it takes to fill more than the last-level cache."""
    weight_NK = matrix(size_KN[1], size_KN[0])
    first = linear.pack(weight_NK, None, format)
    return [first] + [linear.pack(weight_NK, None, format) for _ in range(max(1, cold_bytes() // first.numel()))]


@functools.cache
def rivals(size_KN: tuple[int, int]) -> Rivals:
    """Torch's operators for the matrix of that size."""
    return Rivals(matrix(size_KN[1], size_KN[0]))


def ours(x_MK: torch.Tensor, packed: list[torch.Tensor]) -> Call:
    """Our call, over rotating weights."""
    return rotated(lambda w: linear.linear(x_MK, w), packed)


def few_rows(size_KN: tuple[int, int], name: str, threads: int) -> tuple[Case, int]:
    """1, 8 and 16 rows beside the bandwidth; returns the case and the packed weight's bytes."""
    packed = packed_copies(size_KN, FORMATS[name])
    calls: dict[str, Call] = {}
    for rows in FEW:
        x_MK = 50 * matrix(rows, size_KN[0])
        calls[f"ours {rows}"] = ours(x_MK, packed)
        if rows != 8 and name != "int4 g128":
            found = rivals(size_KN).of(FORMATS[name].codes, x_MK)
            calls |= {f"{rival} {rows}": call for rival, call in found.items()}
    return Case(calls, {"read": lambda: cold_read(threads, packed[0].numel())}, packed), packed[0].numel()


def many_rows(size_KN: tuple[int, int], name: str, threads: int, rows: int) -> Case:
    """One large product beside the peaks of the vector instruction and, where there is one, of the tile instruction."""
    x_MK = 50 * matrix(rows, size_KN[0])
    instruction: Literal["bf16", "int8"] = "bf16" if name == "bf16" else "int8"
    calls = {"ours": ours(x_MK, packed_copies(size_KN, FORMATS[name]))}
    if name != "int4 g128":
        calls |= rivals(size_KN).of(FORMATS[name].codes, x_MK)
    found = {"peak": lambda: probes.peak(instruction, threads, 10)}
    if probes.peak(f"amx {instruction}", threads, 1):
        found["amx"] = lambda: probes.peak(f"amx {instruction}", threads, 10)
    return Case(calls, found)


def best_rival(unit: dict[str, float], rows: int | None) -> float:
    """Seconds of the fastest rival that does the whole job."""
    ending = "" if rows is None else f" {rows}"
    return min(
        (
            t
            for name, t in unit.items()
            if name[:2] in ("F.", "_w", "_i") and name.endswith(ending) and "no scales" not in name
        ),
        default=float("nan"),
    )


def limits(threads: int, units: int, console: Console) -> tuple[list[dict[str, Any]], Table]:
    """Measure and tabulate the limits with `threads` threads."""
    few = {(size, name): few_rows(size, name, threads) for size in MATRICES_KN for name in FORMATS}
    many = {(name, rows): many_rows(MATRICES_KN[0], name, threads, rows) for name in FORMATS for rows in MANY}
    cases = [case for case, _ in few.values()] + list(many.values())
    large = {id(case) for case in many.values()}
    order = random.Random(0)
    with step(console, f"{threads} threads, by turns") as advance:
        for done in range(units):
            for index, case in enumerate(order.sample(cases, len(cases))):
                if id(case) not in large or done % 3 == 0:
                    run_unit(case, order)
                advance(done * len(cases) + index + 1, units * len(cases))
    place = main_placement(cases)
    table = Table(title=f"{threads} threads, placement '{place}'")
    for heading in ("K x N", "weights", "1 row", "of read", "x torch", "t(8)/t(1)", "t(16)/t(1)", "x torch at 16"):
        table.add_column(heading, justify="right")
    rows: list[dict[str, Any]] = []
    for (size, name), (case, count) in few.items():
        row = {
            "threads": threads, "K": size[0], "N": size[1], "weights": name, "placement": place, "bytes": count,
            "gb_per_s": median_of(case, place, lambda u, c=count: c / u["ours 1"] / 1e9),
            "share_of_read": median_of(case, place, lambda u, c=count: c / u["ours 1"] / u["read"]),
            "x_torch_1": median_of(case, place, lambda u: best_rival(u, 1) / u["ours 1"]),
            "t8": median_of(case, place, lambda u: u["ours 8"] / u["ours 1"]),
            "t16": median_of(case, place, lambda u: u["ours 16"] / u["ours 1"]),
            "x_torch_16": median_of(case, place, lambda u: best_rival(u, 16) / u["ours 16"]),
        }  # fmt: skip
        rows.append(row)
        table.add_row(
            f"{size[0]} x {size[1]}", name, f"{row['gb_per_s']:.1f} GB/s", f"{row['share_of_read']:.0%}",
            f"{row['x_torch_1']:.2f}", f"{row['t8']:.2f}", f"{row['t16']:.2f}", f"{row['x_torch_16']:.2f}",
        )  # fmt: skip
    return rows + [_many_row(table, case, name, count, threads, place) for (name, count), case in many.items()], table


def _many_row(table: Table, case: Case, name: str, rows: int, threads: int, place: str) -> dict[str, Any]:
    operations = 2.0 * rows * MATRICES_KN[0][0] * MATRICES_KN[0][1]
    bare = [call for call in case.calls if "no scales" in call]
    row = {
        "threads": threads, "rows": rows, "weights": name, "placement": place,
        "top_per_s": median_of(case, place, lambda u: operations / u["ours"] / 1e12),
        "share_of_peak": median_of(case, place, lambda u: operations / u["ours"] / u["peak"]),
        "share_of_amx": median_of(case, place, lambda u: operations / u["ours"] / u["amx"]) if "amx" in case.measures
        else None,
        "x_torch": median_of(case, place, lambda u: best_rival(u, None) / u["ours"]),
        "x_int_mm_without_scales": median_of(case, place, lambda u: u[bare[0]] / u["ours"]) if bare else None,
    }  # fmt: skip
    beside = f", bare _int_mm {row['x_int_mm_without_scales']:.2f}" if bare else ""
    tiles = f", {row['share_of_amx']:.0%} of AMX" if row["share_of_amx"] else ""
    table.add_row(
        f"{rows} rows", name, f"{row['top_per_s']:.2f} TOP/s", f"{row['share_of_peak']:.0%} of peak{tiles}",
        f"{row['x_torch']:.2f}{beside}",
    )  # fmt: skip
    return row


def sweep(threads: int, units: int, console: Console) -> dict[str, Any]:
    """Time against rows at 4096 x 4096, and odd sizes beside even ones."""
    cases: dict[str, Case] = {}
    xs = {rows: 50 * matrix(rows, 4096) for rows in SWEEP_ROWS}
    for name in ("bf16", "int8", "int4"):
        packed = packed_copies(MATRICES_KN[0], FORMATS[name])
        cases |= {f"{name} {rows}": Case({"ours": ours(xs[rows], packed)}, {}) for rows in SWEEP_ROWS}
    for rows in (1, 4, 16, 64, 256, 1024, 4096):
        cases[f"torch {rows}"] = Case(rivals(MATRICES_KN[0]).of("bf16", xs[rows]), {})
    for title, shapes in ODD.items():
        calls = {}
        for depth, columns, rows in shapes:
            packed = packed_copies((depth, columns), INT8)
            calls[f"{depth} {columns} {rows}"] = ours(50 * matrix(rows, depth), packed)
        cases[title] = Case(calls, {"read": lambda: cold_read(threads, 4 << 20)})
    order = random.Random(0)
    with step(console, "sweep, by turns") as advance:
        for done in range(units):
            for index, name in enumerate(order.sample(sorted(cases), len(cases))):
                large = name.split()[-1] in ("1024", "2048", "4096") and name.split()[0] in (
                    "bf16",
                    "int8",
                    "int4",
                    "torch",
                )
                if not large or done % 4 == 0:
                    run_unit(cases[name], order)
                advance(done * len(cases) + index + 1, units * len(cases))
    place = main_placement(list(cases.values()))
    curves: dict[str, dict[int, float]] = {}
    for name, case in cases.items():
        if name not in ODD:
            curve, rows = name.split()
            key = "ours" if "ours" in case.calls else next(iter(case.calls))
            curves.setdefault(curve, {})[int(rows)] = median_of(case, place, lambda u, k=key: u[k])
    return {"placement": place, "threads": threads, "seconds": curves, "odd": _odd(cases, place, console)}


def _odd(cases: dict[str, Case], place: str, console: Console) -> dict[str, float]:
    """How much longer an odd size takes than its neighbours' times would say, by work."""
    table = Table("size", "over its neighbours' trend", title="odd and skinny sizes, INT8")
    found = {}
    for title, shapes in ODD.items():
        names = [f"{depth} {columns} {rows}" for depth, columns, rows in shapes]
        work = [depth * columns * (rows if title.startswith("rows") else 1) for depth, columns, rows in shapes]
        odd, others = (1, (0, 2)) if len(shapes) == 3 else (0, (1,))

        def over(
            unit: dict[str, float], n: list[str] = names, w: list[int] = work, o: int = odd, rest: Any = others
        ) -> float:
            return unit[n[o]] / w[o] / (sum(unit[n[i]] / w[i] for i in rest) / len(rest))

        found[title] = median_of(cases[title], place, over) - 1.0
        table.add_row(title, f"{found[title]:+.1%}")
    console.print(table)
    return found


def main(
    sweep_sizes: Annotated[
        bool, typer.Option("--sweep", help="time against rows and sizes instead of the limits")
    ] = False,
    units: Annotated[int, typer.Option(help="units of each case; large products get a third")] = 15,
    threads: Annotated[int, typer.Option(help="threads; 0: two, then one")] = 0,
) -> None:
    """Measure, print, and write the result as JSON."""
    console = Console(width=140)
    result = header()
    name = f"{'linear-sweep' if sweep_sizes else 'linear'}-{isa_level()}"
    if sweep_sizes:
        torch.set_num_threads(threads or 2)
        result |= sweep(threads or 2, units, console)
        draw_sweep(result, ROOT / "docs" / f"linear-{isa_level()}.png")
    else:
        result["rows"] = []
        for count in (threads,) if threads else (2, 1):
            torch.set_num_threads(count)
            rows, table = limits(count, units, console)
            result["rows"] += rows
            console.print(table)
    file = ROOT / "bench" / "results" / f"{name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not sweep_sizes:
        write_report(result, file.with_suffix(".md"))
    console.print(f"written: {file.relative_to(ROOT)}")


if __name__ == "__main__":
    typer.run(main)
