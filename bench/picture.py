"""Draws docs/speed-LEVEL.png.

python -m bench.picture bench/results/generate-llama-3.2-1b-avx512.json docs/speed-avx512.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from bench.figure import save

GREY, RED = "#a9b4bf", "#c4401c"


def draw(result: dict[str, Any], path: Path) -> None:
    """Two panels, prefill and decode, before and after, in the placement that most laps had."""
    (stock, before), (ours, after) = result["summary"][0]["medians"].items()
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.3), layout="constrained")
    titles = {
        "prefill": f"prefill, {result['prompt_tokens']} tokens",
        "decode": f"decode, {result['new_tokens']} tokens",
    }
    for axes, (stage, title) in zip(panels, titles.items(), strict=True):
        values = [before[stage], after[stage]]
        bars = axes.barh([stock, ours], values, color=[GREY, RED], height=0.62)
        axes.bar_label(bars, [_number(values[0]), f"{_number(values[1])}  ({values[1] / values[0]:.1f}x)"], padding=4)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlim(0, 1.45 * max(values))
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(left=False)
    panels[1].set_yticklabels([])
    figure.suptitle(f"generate(), tokens per second: {result['shape']}, {result['threads']} threads", fontsize=10.5)
    save(figure, path)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    draw(json.loads(source.read_text(encoding="utf-8")), target)
