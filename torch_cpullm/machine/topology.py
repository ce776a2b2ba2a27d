"""Cores, caches and NUMA nodes, as Linux describes them under /sys/devices/system."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

SYSTEM = Path("/sys/devices/system")


@dataclass(frozen=True)
class Topology:
    """What this process may run on.

    Attributes:
        logical: CPUs in the process's affinity mask.
        physical: distinct cores among them (None: the system does not say).
        sockets: packages among them (None: likewise).
        cores: those cores, each with its CPUs, which are the core's hardware threads.
        nodes: NUMA nodes among them by the system's numbers, each with its CPUs.
        caches: bytes of (L1 data, L2, L3) as the first CPU sees them; 0 where unknown.
    """

    logical: int
    physical: int | None
    sockets: int | None
    cores: tuple[tuple[int, ...], ...]
    nodes: Mapping[int, tuple[int, ...]]
    caches: tuple[int, int, int]


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Read Linux's notation: "0-3,8" is (0, 1, 2, 3, 8)."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)


def write_cpu_list(cpus: tuple[int, ...]) -> str:
    """The way back: (0, 1, 2, 3, 8) is "0-3,8"."""
    spans: list[list[int]] = []
    for cpu in sorted(cpus):
        if spans and cpu == spans[-1][1] + 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in spans)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _cache_bytes(cpu: Path) -> tuple[int, int, int]:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = {1: 0, 2: 0, 3: 0}
    for entry in sorted(cpu.glob("cache/index*")):
        level, kind, size = (_read(entry / name) for name in ("level", "type", "size"))
        if level and size and kind != "Instruction" and int(level) in sizes:
            sizes[int(level)] = int(size[:-1]) * units[size[-1]] if size[-1] in units else int(size)
    return sizes[1], sizes[2], sizes[3]


def read_topology(system: Path = SYSTEM, affinity: set[int] | None = None) -> Topology:
    """Read the topology of the CPUs in `affinity` (default: this process's).

    Args:
        system: the folder that holds cpu/ and node/; tests pass one of their own.
        affinity: CPU numbers.
    """
    allowed = affinity if affinity is not None else _affinity()
    cores: dict[tuple[str, str], tuple[int, ...]] = {}
    for cpu in sorted(allowed):
        package = _read(system / f"cpu/cpu{cpu}/topology/physical_package_id")
        core = _read(system / f"cpu/cpu{cpu}/topology/core_id")
        if package is not None and core is not None:
            cores[package, core] = (*cores.get((package, core), ()), cpu)
    nodes = {}
    for node in sorted(system.glob("node/node[0-9]*"), key=lambda path: int(path.name[4:])):
        members = tuple(cpu for cpu in parse_cpu_list(_read(node / "cpulist") or "") if cpu in allowed)
        if members:
            nodes[int(node.name[4:])] = members
    return Topology(
        logical=len(allowed),
        physical=len(cores) or None,
        sockets=len({package for package, _ in cores}) or None,
        cores=tuple(cores.values()),
        nodes=nodes or {0: tuple(sorted(allowed))},
        caches=_cache_bytes(system / f"cpu/cpu{min(allowed, default=0)}"),
    )


def narrowed(topology: Topology, cpus: Collection[int]) -> Topology:
    """The same machine for a process that may use `cpus` alone."""
    cores = tuple(tuple(cpu for cpu in core if cpu in cpus) for core in topology.cores)
    nodes = {number: tuple(cpu for cpu in members if cpu in cpus) for number, members in topology.nodes.items()}
    return replace(
        topology,
        logical=len(cpus),
        physical=sum(bool(core) for core in cores) or None,
        cores=tuple(core for core in cores if core),
        nodes={number: members for number, members in nodes.items() if members},
    )


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))
