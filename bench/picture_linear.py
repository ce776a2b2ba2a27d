"""Draws docs/linear-LEVEL.png: time of a linear layer against its rows.

python -m bench.picture_linear bench/results/linear-sweep-avx512.json docs/linear-avx512.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.figure import curves, save

COLOURS = {"torch": "#8a96a3", "bf16": "#2b6cb0", "int8": "#c4401c", "int4": "#2f855a"}
LABELS = {"torch": "torch F.linear, bf16", "bf16": "bf16", "int8": "INT8", "int4": "INT4, groups of 32"}


def draw_sweep(result: dict[str, Any], path: Path) -> None:
    """Log-log: flat while memory is the limit, then proportional to the rows."""
    title = f"one linear layer, 4096 x 4096, {result['threads']} threads, weights from memory"
    figure, axes = curves(title, "rows of x", "milliseconds", [1, 4, 16, 64, 256, 1024, 4096])
    axes.set_yscale("log")
    for name in ("torch", "bf16", "int8", "int4"):
        curve = {int(rows): seconds for rows, seconds in result["seconds"][name].items()}
        rows = sorted(curve)
        style = "o--" if name == "torch" else "o-"
        axes.plot(rows, [1e3 * curve[r] for r in rows], style, color=COLOURS[name], label=LABELS[name], ms=3.5, lw=1.4)
    axes.legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    draw_sweep(json.loads(source.read_text(encoding="utf-8")), target)
