"""`torch-cpullm launch`: start a script, or a rank of it on each NUMA node, with the right CPUs, threads and memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from torch_cpullm import config
from torch_cpullm.cli.mistakes import mistakes_in_words
from torch_cpullm.cli.ranks import run_ranks
from torch_cpullm.errors import ConfigError
from torch_cpullm.machine.launching import settle, this_host
from torch_cpullm.machine.settings import Malloc, OpenMP, Request, Settings
from torch_cpullm.machine.topology import Topology, parse_cpu_list, write_cpu_list

COMMANDS = ("bench", "generate", "profile")
"""What may stand in a script's place."""


def launch(  # noqa: PLR0913  (every option by its name)
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help=f"what to start; {', '.join(COMMANDS)}: of ours")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGS", help="what the script is given")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as with python -m")] = False,
    threads: Annotated[int | None, typer.Option(help="threads to compute with (default: one a CPU)")] = None,
    cpus: Annotated[str | None, typer.Option(help="the CPUs to run on, like 0-3,8")] = None,
    sockets: Annotated[
        str | None, typer.Option(metavar="N", help="start N ranks, as torchrun does; auto: one on each NUMA node")
    ] = None,
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

    With --sockets, start it once for each NUMA node: what a script needs that calls torch_cpullm.distributed.init().

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
        command = _command(script, module, arguments or [])
        host = this_host(environment)
        count = _count(sockets, host.topology)
        ranks = [settle(replace(request, rank=rank, ranks=count), host) for rank in range(count)]
    if not quiet:
        _show(ranks)
    if dry_run:
        return
    if count > 1:
        raise typer.Exit(run_ranks(command, ranks))
    os.sched_setaffinity(0, ranks[0].cpus)
    environment.update({variable.name: variable.value for variable in ranks[0].variables})
    os.execvpe(command[0], command, environment)


def _command(script: str, module: bool, arguments: Sequence[str]) -> list[str]:
    if not module and script in COMMANDS:
        return [sys.executable, "-m", "torch_cpullm.cli", script, *arguments]
    if not module and not Path(script).exists():
        commands = ", ".join(COMMANDS)
        raise ConfigError(
            f"script: expected a file or one of {commands}, found none at '{script}'; for a module add -m before it"
        )
    return [sys.executable, *(["-m"] if module else []), script, *arguments]


def _count(sockets: str | None, topology: Topology) -> int:
    """Ranks to start. By itself one for each NUMA node that has CPUs, not for each socket.

    A socket may be several nodes, each with memory channels of its own (sub-NUMA clustering): a rank across them would
    read half of its weights through the others' channels. Without clustering the two are the same.
    """
    if sockets is None:
        return 1
    if sockets == "auto":
        return len(topology.nodes)
    if not (sockets.isascii() and sockets.isdigit() and 1 <= int(sockets) <= topology.logical):
        raise ConfigError(
            f"sockets: expected auto, or 1 to {topology.logical}, the CPUs this process may use, got '{sockets}'"
        )
    return int(sockets)


def _cpu_list(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else parse_cpu_list(text)
    except ValueError:
        raise ConfigError(f"cpus: expected numbers and ranges like 0-3,8, got '{text}'") from None


def _show(ranks: Sequence[Settings]) -> None:
    """To stderr: stdout is the script's."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in ("name", "value", "why"):
        table.add_column(name, overflow="fold", style="dim" if name == "why" else None)
    for rank, settings in enumerate(ranks):
        whose = f" of rank {rank}" if len(ranks) > 1 else ""
        table.add_row(f"CPUs{whose}", write_cpu_list(settings.cpus), settings.why_cpus)
    for rank, settings in enumerate(ranks):
        for variable in settings.variables:
            everyones = all(variable in other.variables for other in ranks)
            if rank and everyones:
                continue  # it stands there already
            whose = "" if everyones else f" of rank {rank}"
            why = f"kept, {variable.why}" if variable.kept else variable.why
            table.add_row(f"{variable.name}{whose}", variable.value, why)
    console = Console(stderr=True, highlight=False, markup=False)
    console.print(table)
    for note in dict.fromkeys(note for settings in ranks for note in settings.notes):
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
