"""The machine as one value."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from torch_cpullm.machine.container import cpu_quota, memory_limit_bytes
from torch_cpullm.machine.huge_pages import transparent_huge_pages
from torch_cpullm.machine.openmp import runtimes_in_use
from torch_cpullm.machine.topology import Topology, read_topology
from torch_cpullm.ops import introspect


@dataclass(frozen=True)
class Machine:
    """What runs the model.

    Attributes:
        cpu: the processor's name, for people; nothing is decided by it.
        features: CPUID features kernels may use.
        isa: level in use.
        topology: cores, nodes and caches this process may use.
        quota: CPUs' worth of time a container allows, None without a limit.
        memory_bytes: memory this process may use.
        openmp: paths of the OpenMP runtimes that this process uses.
        huge_pages: "always", "madvise", "never", or None.
    """

    cpu: str
    features: tuple[str, ...]
    isa: str
    topology: Topology
    quota: float | None
    memory_bytes: int
    openmp: tuple[str, ...]
    huge_pages: str | None


def _cpu_name(file: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def detect_machine() -> Machine:
    """Look at this machine and this process; takes about a millisecond."""
    return Machine(
        cpu=_cpu_name(),
        features=introspect.cpu_features(),
        isa=introspect.isa_level(),
        topology=read_topology(),
        quota=cpu_quota(),
        memory_bytes=memory_limit_bytes(),
        openmp=runtimes_in_use(),
        huge_pages=transparent_huge_pages(),
    )
