"""What the pictures of curves have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

Frame = tuple[str, str, str, list[int]]
"""Title, name of x, name of y, ticks of x."""


def curves(title: str, xlabel: str, ylabel: str, ticks: list[int]) -> tuple[Any, Any]:
    """Return a figure and its axes: x in powers of two with a tick at each of `ticks`."""
    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
    _dress(axes, (title, xlabel, ylabel, ticks))
    return figure, axes


def panels(*frames: Frame) -> tuple[Any, Any]:
    """Return a figure and the axes of each of its panels, side by side; x as in `curves`."""
    figure, all_axes = plt.subplots(1, len(frames), figsize=(4.8 * len(frames), 4.0), layout="constrained")
    for axes, frame in zip(all_axes, frames, strict=True):
        _dress(axes, frame)
    return figure, all_axes


def _dress(axes: Any, frame: Frame) -> None:
    title, xlabel, ylabel, ticks = frame
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(visible=True, which="major", color="#e3e7eb", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10)


def save(figure: Any, path: Path) -> None:
    """Write the picture and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)
