"""A mistake of the user is one line and exit code 2, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from torch_cpullm.errors import TorchCpuLlmError


@contextmanager
def mistakes_in_words() -> Iterator[None]:
    """End the command with the sentence of a TorchCpuLlmError that the block raises."""
    try:
        yield
    except TorchCpuLlmError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(str(error), style="red", markup=False)
        raise typer.Exit(2) from None
