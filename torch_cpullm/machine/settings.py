"""The nouns of a launch: what was asked for, where it will run, and what it is to start with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch_cpullm.machine.topology import Topology

OpenMP = Literal["auto", "gnu", "intel"]
Malloc = Literal["auto", "system", "tcmalloc", "jemalloc"]


@dataclass(frozen=True)
class Request:
    """What the user asked for; None and "auto" leave the choice to `settle`.

    Attributes:
        threads: threads to compute with.
        cpus: the CPUs to run on; `node`, `all_nodes` and `smt` do not apply to them.
        node: a NUMA node by the system's number.
        all_nodes: the CPUs of every node.
        smt: all hardware threads of a core, not the first alone.
        bind: each thread to a CPU of its own.
        shared: other processes compute on the same CPUs.
        openmp: the runtime that runs parallel regions.
        malloc: the allocator of the process.
        huge_pages: whether malloc asks for huge pages.
        rank: number of the process among those that share the host.
        ranks: how many they are; with several, each has a share of all nodes, or of `node` or `cpus`.
    """

    threads: int | None = None
    cpus: tuple[int, ...] | None = None
    node: int | None = None
    all_nodes: bool = False
    smt: bool = False
    bind: bool = False
    shared: bool = False
    openmp: OpenMP = "auto"
    malloc: Malloc = "auto"
    huge_pages: bool | None = None
    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class Host:
    """Where it will run.

    Attributes:
        topology: cores and nodes this process may use.
        quota: CPUs' worth of time a container allows, None without a limit.
        huge_pages: transparent huge pages are "always", "madvise", "never", or None.
        glibc: version of the C library; None for another one than glibc.
        libraries: paths of what could be preloaded, by the words of `OpenMP` and `Malloc`.
        environment: variables that are set already.
    """

    topology: Topology
    quota: float | None = None
    huge_pages: str | None = None
    glibc: tuple[int, int] | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """One environment variable with its reason; `kept` is one that the user had set."""

    name: str
    value: str
    why: str
    kept: bool = False


@dataclass(frozen=True)
class Settings:
    """What the process is to start with.

    Attributes:
        cpus: its affinity mask.
        why_cpus: the reason.
        threads: threads it computes with.
        variables: its environment variables, set and kept.
        notes: what the user could do for more speed.
    """

    cpus: tuple[int, ...]
    why_cpus: str
    threads: int
    variables: tuple[Setting, ...]
    notes: tuple[str, ...]


def setting(host: Host, name: str, value: str, why: str, *, explicit: bool = False) -> Setting:
    """The variable as it will be: a value the user has set stays, unless an explicit option says otherwise."""
    present = host.environment.get(name)
    if present and not explicit:
        return Setting(name, present, "set by you", kept=True)
    return Setting(name, value, why)
