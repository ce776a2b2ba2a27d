"""A result as a picture: bars of the two speeds that most people ask for, and decoding against the depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from torch_cpullm.benchmark.engines.roster import OURS

if TYPE_CHECKING:
    from pathlib import Path

    from torch_cpullm.benchmark.result import Result
    from torch_cpullm.benchmark.standing import Standing

GREY, RED = "#a9b4bf", "#c4401c"
SHADES = {4: "-", 8: "--", 16: ":"}


def draw(result: Result, file: Path) -> None:
    """Three panels: prefill of 512 tokens, decode after 512, decode against depth."""
    figure, (prefill, decode, depth) = plt.subplots(
        1, 3, figsize=(13, 0.28 * len(result.entries) + 1.6), layout="constrained", width_ratios=(1, 1, 1.15)
    )
    alone = [one for one in result.standings if one.work.batch == 1]
    _bars(prefill, "prefill, 512 tokens", [o for o in alone if _is(o, "prefill", 0) and o.work.tokens == 512], result)
    _bars(decode, "decode after 512", [o for o in alone if _is(o, "decode", 512)], result)
    decode.set_yticklabels([])
    _curves(depth, [one for one in alone if one.work.kind == "decode"], result)
    figure.suptitle(f"{result.shape}, tokens per second, {result.threads} threads ({result.isa})", fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _is(one: Standing, kind: str, depth: int) -> bool:
    return one.work.kind == kind and one.work.depth == depth


def _color(name: str) -> str:
    return RED if name.startswith(OURS) else GREY


def _bars(axes: Any, title: str, standings: list[Standing], result: Result) -> None:
    found = {one.contender: one.tokens_s for one in standings}
    names = sorted(result.entries, key=lambda name: -result.entries[name].bits)
    values = [found.get(name, 0.0) for name in names]
    bars = axes.barh(names, values, color=[_color(name) for name in names], height=0.7)
    labels = [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlim(0, 1.2 * max([*values, 1.0]))
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False, labelsize=8)


def _curves(axes: Any, standings: list[Standing], result: Result) -> None:
    ends: list[tuple[float, float, str]] = []
    for name, entry in result.entries.items():
        points = sorted((one.work.depth, one.tokens_s) for one in standings if one.contender == name)
        if len(points) > 1:
            line = {"linestyle": SHADES.get(entry.bits, "-"), "marker": "o", "markersize": 3, "linewidth": 1.4}
            axes.plot(*zip(*points, strict=True), color=_color(name), **line)
            ends.append((points[-1][1], points[-1][0], name))
    lowest = 0.0
    for speed, depth, name in sorted(ends):  # from below, each label at least a line above the one before
        lowest = max(speed, lowest)
        axes.annotate(name, (depth, lowest), xytext=(5, 0), textcoords="offset points", fontsize=7, va="center")
        lowest += 0.045 * max(ends)[0]
    axes.set_title("decode against tokens in the context", loc="left", fontsize=10)
    axes.set_ylim(bottom=0)
    if ends:
        axes.set_xlim(0, 1.4 * max(depth for _, depth, _ in ends))
    axes.grid(visible=True, color="#e3e7eb", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
