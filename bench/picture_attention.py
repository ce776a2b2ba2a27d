"""Draws docs/attention-LEVEL.png: speed of causal attention against the length of the prompt.

python -m bench.picture_attention bench/results/attention-avx512.json docs/attention-avx512.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.figure import curves, save

CURVES = {
    "int8 flash": ("INT8 pages, flash", "#c4401c", "o-"),
    "int8 slim": ("INT8 pages, slim", "#c4401c", "o--"),
    "bf16 flash": ("bf16 pages, flash", "#2b6cb0", "s-"),
    "bf16 slim": ("bf16 pages, slim", "#2b6cb0", "s--"),
    "torch": ("torch SDPA, bf16", "#8a96a3", "^-"),
}


def draw_prefill(result: dict[str, Any], path: Path) -> None:
    """GFLOP/s over the tokens, with the peak of the vector instruction as a line."""
    rows = result["prefill"]
    tokens = [row["tokens"] for row in rows]
    title = f"one layer's attention, {result['shape']}, {result['threads']} threads"
    figure, axes = curves(title, "tokens of the prompt", "GFLOP/s, causal half counted", tokens)
    for name, (label, colour, style) in CURVES.items():
        axes.plot(tokens, [row["gflops"][name] for row in rows], style, color=colour, label=label, ms=4, lw=1.4)
    peak = [row["peak_gflops"] for row in rows]
    axes.plot(tokens, peak, color="#4a5568", lw=0.9, ls=":", label="peak of vdpbf16ps")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    draw_prefill(json.loads(source.read_text(encoding="utf-8")), target)
