"""Every long step shows itself: what it is, how far, how long still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int, int], None]
"""Called as (done, total), in whatever unit the step counts."""


def silent(done: int, total: int) -> None:
    """Show nothing: an `Advance` for callers that nobody watches."""


@contextmanager
def step(console: Console, title: str) -> Iterator[Advance]:
    """Show `title` with a bar while the block runs; without calls of the yielded `Advance` the bar pulses."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None)
        try:
            yield lambda done, total: progress.update(task, completed=done, total=total)
        except BaseException:
            progress.live.transient = True  # the error says what happened; a bar that stands still would not
            raise
        total = progress.tasks[0].total or 1
        progress.update(task, completed=total, total=total)
