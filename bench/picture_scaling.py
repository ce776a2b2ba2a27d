"""Draws bench/results/scaling-LEVEL.png: measured and modelled here, and the model for larger machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figure import panels, save

if TYPE_CHECKING:
    from bench.outlook import Ahead
    from torch_cpullm.benchmark.scaling import Step

COLOURS = {"bf16": "#2b6cb0", "int8": "#c4401c", "int4": "#3a8a4d"}
PAPER = "#4a5568"

Points = Mapping[str, Sequence[tuple[int, float, "Step"]]]
"""By format: number of ranks, measured milliseconds, the model's step."""


def draw_scaling(points: Points, ahead: Sequence[Ahead], paper_ms: Mapping[int, float], path: Path) -> None:
    """Two panels: one core against two ranks here, and Llama-2-70B over sockets."""
    figure, (here, there) = panels(
        ("Llama-3.2-1B here, one core a rank", "ranks", "milliseconds a token", [1, 2]),
        ("Llama-2-70B, Xeon 8563C, from the model", "sockets", "milliseconds a token", [2, 4, 8]),
    )
    for weights, of_ranks in points.items():
        ranks = [count for count, _, _ in of_ranks]
        modelled = [1e3 * step.seconds for _, _, step in of_ranks]
        here.plot(ranks, modelled, ":", color=COLOURS[weights], lw=1.4)
        here.plot(ranks, [ms for _, ms, _ in of_ranks], "o", color=COLOURS[weights], ms=6, label=f"{weights}, measured")
    here.plot([], [], ":", color=PAPER, label="model")
    here.set_ylim(bottom=0)
    here.set_xlim(0.85, 2.35)
    for weights in points:
        own = [one for one in ahead if one.weights == weights]
        sockets = [one.sockets for one in own]
        low, middle, high = zip(*(one.milliseconds for one in own), strict=True)
        there.fill_between(sockets, low, high, color=COLOURS[weights], alpha=0.18, lw=0)
        there.plot(sockets, middle, "o:", color=COLOURS[weights], ms=4, lw=1.4, label=weights)
    there.plot(*zip(*paper_ms.items(), strict=True), "*", color=PAPER, ms=11, label="arXiv 2407.07304")
    there.set_yscale("log", base=2)
    ticks = [16, 32, 64, 128, 256]
    there.set_yticks(ticks, [str(tick) for tick in ticks])
    for axes in (here, there):
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)
