"""The demo's last word: one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from rich.table import Table

from torch_cpullm.demo.quality import change

if TYPE_CHECKING:
    from torch_cpullm.demo.compare import Comparison


def table_of(comparison: Comparison) -> Table:
    """Lay out both sides: speeds of prefill and decode, their ratio, bytes, perplexity."""
    stock, ours = comparison.stock, comparison.ours
    lap = stock.speed.laps[0]
    table = Table(title=comparison.subject, title_justify="left", caption=_caption(comparison), caption_justify="left")
    table.add_column("")
    table.add_column(stock.label, justify="right")
    table.add_column(ours.label, justify="right")
    table.add_column("", justify="right", style="bold")
    table.add_row(f"prefill {lap.prompt_tokens}, tokens/s", *_speeds(stock.speed.prefill, ours.speed.prefill))
    table.add_row(f"decode {lap.decoded_tokens}, tokens/s", *_speeds(stock.speed.decode, ours.speed.decode))
    table.add_row("weights", *_sizes(stock.weight_bytes, ours.weight_bytes))
    table.add_row("KV cache per token", *_sizes(stock.kv_bytes_per_token, ours.kv_bytes_per_token))
    if stock.perplexity is not None and ours.perplexity is not None:
        table.add_row(
            "held-out perplexity",
            f"{stock.perplexity:.3f}",
            f"{ours.perplexity:.3f}",
            f"{change(stock.perplexity, ours.perplexity):+.2f} %",
        )
    return table


def _speeds(before: float, after: float) -> tuple[str, str, str]:
    return f"{before:,.1f}", f"{after:,.1f}", f"{after / before:.2f}x"


def _sizes(before: float, after: float) -> tuple[str, str, str]:
    return size(before), size(after), f"{100 * after / before:.0f} %"


def size(count: float) -> str:
    """Bytes in the largest decimal unit that leaves a number above one."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def _caption(comparison: Comparison) -> str:
    laps = len(comparison.stock.speed.laps)
    turns = (
        "taken in turns"
        if comparison.interleaved
        else "one side after the other, since two copies do not fit in memory"
    )
    scored = f"; perplexity of {comparison.scored_tokens:,} tokens" if comparison.scored_tokens else ""
    return (
        f"medians of {laps} laps, {turns}; {torch.get_num_threads()} threads, torch {torch.__version__}{scored}; "
        f"{comparison.swapped} modules swapped, {comparison.left_alone} left alone"
    )
