"""A bar for packing, where someone is watching and there is enough to wait for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A hundred matrices of a 1 B model take a few seconds; fewer are done before a bar could be read.
_FEWEST_MATRICES = 60


@contextmanager
def packing_progress(matrices: int, calibrated: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """Yield a callback (done, total, name) that moves a bar on stderr, or None where no bar is shown."""
    if (matrices < _FEWEST_MATRICES and not calibrated) or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("calibrating" if calibrated else "packing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=matrices)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)
