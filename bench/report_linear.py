"""The limits of the linear layers as Markdown, from a result of bench_linear.

python -m bench.report_linear bench/results/linear-avx512.json     writes bench/results/linear-avx512.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FEW = "| K x N | weights | 1 row | of read | against torch | t(8)/t(1) | t(16)/t(1) | 16 rows against torch |"
MANY = "| rows | weights | speed | of the vector peak | of the AMX peak | against torch | against bare `_int_mm` |"


def _times(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.2f}x"  # NaN: torch has nothing for this format


def _lines(rows: list[dict[str, Any]], threads: int) -> list[str]:
    few = [row for row in rows if row["threads"] == threads and "K" in row]
    many = [row for row in rows if row["threads"] == threads and "rows" in row]
    lines = [f"## {threads} thread{'s' if threads > 1 else ''}, placement '{few[0]['placement']}'", ""]
    lines += [FEW, "|---" * (FEW.count("|") - 1) + "|"]
    for row in few:
        cells = [f"{row['K']} x {row['N']}", row["weights"], f"{row['gb_per_s']:.1f} GB/s"]
        cells += [f"{row['share_of_read']:.0%}", _times(row["x_torch_1"]), f"{row['t8']:.2f}", f"{row['t16']:.2f}"]
        lines.append("| " + " | ".join([*cells, _times(row["x_torch_16"])]) + " |")
    lines += ["", "4096 x 4096:", "", MANY, "|---" * (MANY.count("|") - 1) + "|"]
    for row in many:
        tiles = row.get("share_of_amx")
        cells = [str(row["rows"]), row["weights"], f"{row['top_per_s']:.2f} TOP/s", f"{row['share_of_peak']:.0%}"]
        cells += [f"{tiles:.0%}" if tiles else "", _times(row["x_torch"]), _times(row["x_int_mm_without_scales"])]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def write_report(result: dict[str, Any], path: Path) -> None:
    """One page: the machine, then two tables for each thread count."""
    lines = ["# Linear layers against the machine's limits", "", f"Measured {result['when']} by bench/bench_linear.py;"]
    lines += ["weights rotated beyond the last cache, x and y bf16, quantisation included. Shares and ratios are"]
    lines += ["medians of what one unit measured side by side.", ""]
    lines += ["```", *result["info"].splitlines(), "```", ""]
    for threads in sorted({row["threads"] for row in result["rows"]}, reverse=True):
        lines += _lines(result["rows"], threads)
    path.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    file = Path(sys.argv[1])
    write_report(json.loads(file.read_text(encoding="utf-8")), file.with_suffix(".md"))
