"""Cores, caches and NUMA nodes, as Linux describes them under /sys/devices/system."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys/devices/system")


@dataclass(frozen=True)
class Topology:
    """What this process may run on.

    Attributes:
        logical: CPUs in the process's affinity mask.
        physical: distinct cores among them (None: the system does not say).
        sockets: packages among them (None: likewise).
        nodes: NUMA nodes among them, each with its CPUs.
        caches: bytes of (L1 data, L2, L3) as the first CPU sees them; 0 where unknown.
    """

    logical: int
    physical: int | None
    sockets: int | None
    nodes: tuple[tuple[int, ...], ...]
    caches: tuple[int, int, int]


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Read Linux's notation: "0-3,8" is (0, 1, 2, 3, 8)."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)


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
    cores: set[tuple[str, str]] = set()
    packages: set[str] = set()
    for cpu in sorted(allowed):
        package = _read(system / f"cpu/cpu{cpu}/topology/physical_package_id")
        core = _read(system / f"cpu/cpu{cpu}/topology/core_id")
        if package is not None and core is not None:
            cores.add((package, core))
            packages.add(package)
    nodes = []
    for node in sorted(system.glob("node/node[0-9]*"), key=lambda path: int(path.name[4:])):
        members = tuple(cpu for cpu in parse_cpu_list(_read(node / "cpulist") or "") if cpu in allowed)
        if members:
            nodes.append(members)
    return Topology(
        logical=len(allowed),
        physical=len(cores) or None,
        sockets=len(packages) or None,
        nodes=tuple(nodes) or (tuple(sorted(allowed)),),
        caches=_cache_bytes(system / f"cpu/cpu{min(allowed, default=0)}"),
    )


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))
