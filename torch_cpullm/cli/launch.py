"""`torch-cpullm launch`: start a script on the right CPUs, with the right threads, runtime and memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from torch_cpullm import config
from torch_cpullm.cli.mistakes import mistakes_in_words
from torch_cpullm.errors import ConfigError
from torch_cpullm.machine.launching import settle, this_host
from torch_cpullm.machine.settings import Malloc, OpenMP, Request, Settings
from torch_cpullm.machine.topology import parse_cpu_list, write_cpu_list


def launch(  # noqa: PLR0913  (every option by its name)
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="what to start")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGS", help="what the script is given")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as with python -m")] = False,
    threads: Annotated[int | None, typer.Option(help="threads to compute with (default: one a CPU)")] = None,
    cpus: Annotated[str | None, typer.Option(help="the CPUs to run on, like 0-3,8")] = None,
    node: Annotated[int | None, typer.Option(help="the NUMA node to run on (default: the one with most CPUs)")] = None,
    all_nodes: Annotated[bool, typer.Option("--all-nodes", help="run on the CPUs of all nodes")] = False,
    smt: Annotated[bool, typer.Option("--smt", help="use all hardware threads of a core")] = False,
    bind: Annotated[bool, typer.Option("--bind", help="bind each thread to one CPU, the main thread too")] = False,
    shared: Annotated[bool, typer.Option("--shared", help="other processes compute on these CPUs too")] = False,
    openmp: Annotated[OpenMP, typer.Option(help="OpenMP runtime; auto: gnu, which torch brings")] = "auto",
    malloc: Annotated[Malloc, typer.Option(help="allocator; auto: the system's")] = "auto",
    huge_pages: Annotated[bool | None, typer.Option(help="huge pages from malloc (default: where it helps)")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="do not show what was set")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be set, and start nothing")] = False,
) -> None:
    """Start a script on the right CPUs, with the right threads, OpenMP runtime and memory.

    Options of launch stand before the script; what follows it belongs to the script.

    Variables that are set already stay as they are, unless an option says otherwise.
    """
    environment = config.environment()
    with mistakes_in_words():
        request = Request(
            threads=threads,
            cpus=_cpu_list(cpus),
            node=node,
            all_nodes=all_nodes,
            smt=smt,
            bind=bind,
            shared=shared,
            openmp=openmp,
            malloc=malloc,
            huge_pages=huge_pages,
        )
        if not module and not Path(script).exists():
            raise ConfigError(f"script: expected a file, found none at '{script}'; for a module add -m before it")
        settings = settle(request, this_host(environment))
    if not quiet:
        _show(settings)
    if dry_run:
        return
    os.sched_setaffinity(0, settings.cpus)
    environment.update({variable.name: variable.value for variable in settings.variables})
    command = [sys.executable, *(["-m"] if module else []), script, *(arguments or [])]
    os.execvpe(command[0], command, environment)


def _cpu_list(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else parse_cpu_list(text)
    except ValueError:
        raise ConfigError(f"cpus: expected numbers and ranges like 0-3,8, got '{text}'") from None


def _show(settings: Settings) -> None:
    """To stderr: stdout is the script's."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in ("name", "value", "why"):
        table.add_column(name, overflow="fold", style="dim" if name == "why" else None)
    table.add_row("CPUs", write_cpu_list(settings.cpus), settings.why_cpus)
    for variable in settings.variables:
        table.add_row(variable.name, variable.value, f"kept, {variable.why}" if variable.kept else variable.why)
    console = Console(stderr=True, highlight=False, markup=False)
    console.print(table)
    for note in settings.notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
