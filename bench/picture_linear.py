"""Draws docs/linear-LEVEL.png: time of a linear layer against its rows.

python -m bench.picture_linear bench/results/linear-sweep-avx512.json docs/linear-avx512.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"torch": "#8a96a3", "bf16": "#2b6cb0", "int8": "#c4401c", "int4": "#2f855a"}
LABELS = {"torch": "torch F.linear, bf16", "bf16": "bf16", "int8": "INT8", "int4": "INT4, groups of 32"}


def draw_sweep(result: dict[str, Any], path: Path) -> None:
    """Log-log: flat while memory is the limit, then proportional to the rows."""
    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
    for name in ("torch", "bf16", "int8", "int4"):
        curve = {int(rows): seconds for rows, seconds in result["seconds"][name].items()}
        rows = sorted(curve)
        style = "o--" if name == "torch" else "o-"
        axes.plot(rows, [1e3 * curve[r] for r in rows], style, color=COLOURS[name], label=LABELS[name], ms=3.5, lw=1.4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("rows of x")
    axes.set_ylabel("milliseconds")
    ticks = [1, 4, 16, 64, 256, 1024, 4096]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.grid(visible=True, which="major", color="#e3e7eb", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title(
        f"one linear layer, 4096 x 4096, {result['threads']} threads, weights from memory", loc="left", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    draw_sweep(json.loads(source.read_text(encoding="utf-8")), target)
