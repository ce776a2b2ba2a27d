"""torch_cpullm.info(): the machine, what runs on it, and what costs speed, with a remedy each."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from torch_cpullm import config
from torch_cpullm.machine.huge_pages import REMEDY
from torch_cpullm.machine.machine import Machine, detect_machine
from torch_cpullm.version import VERSION


@dataclass(frozen=True)
class Info:
    """A report that prints itself."""

    machine: Machine
    threads: int
    versions: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """One fact a line, warnings last."""
        machine, topology = self.machine, self.machine.topology
        l1, l2, l3 = (f"{size // 1024} KiB" if size else "unknown" for size in topology.caches)
        nodes = "; ".join(f"node {i}: {len(cpus)} CPUs" for i, cpus in topology.nodes.items())
        facts = {
            "CPU": f"{machine.cpu}, {topology.physical or '?'} cores, {topology.logical} logical, "
            f"{topology.sockets or '?'} socket(s)",
            "ISA level": f"{machine.isa} ({', '.join(machine.features) or 'no vector features'})",
            "caches": f"L1 {l1}, L2 {l2}, L3 {l3}",
            "NUMA": nodes,
            "memory": f"{machine.memory_bytes / 2**30:.1f} GiB",
            "threads": f"{self.threads}" + (f", container quota {machine.quota:g} CPUs" if machine.quota else ""),
            "OpenMP": ", ".join(path.rsplit("/", 1)[-1] for path in machine.openmp) or "none",
            "huge pages": machine.huge_pages or "unknown",
            "versions": ", ".join(f"{name} {number}" for name, number in self.versions),
        }
        lines = [f"{name:<11} {fact}" for name, fact in facts.items()]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    __repr__ = __str__  # what a notebook shows


def find_warnings(machine: Machine, threads: int, forced_isa: str | None) -> tuple[str, ...]:
    """What costs speed on `machine` with that many threads; each with what to do."""
    found = []
    physical = machine.topology.physical
    if physical and threads > physical:
        found.append(
            f"{threads} threads on {physical} cores: they wait for each other; torch.set_num_threads({physical})"
        )
    if machine.quota and threads > machine.quota:
        fewer = max(1, int(machine.quota))
        found.append(
            f"{threads} threads, but the container grants {machine.quota:g} CPUs; torch.set_num_threads({fewer})"
        )
    if len(machine.openmp) > 1:
        names = ", ".join(path.rsplit("/", 1)[-1] for path in machine.openmp)
        found.append(
            f"{len(machine.openmp)} OpenMP runtimes ({names}) share the cores; uninstall or stop importing one"
        )
    if machine.huge_pages == "never":
        found.append(REMEDY)
    if forced_isa and machine.isa != _best(machine):
        found.append(f"TORCH_CPULLM_ISA={forced_isa} holds kernels below what the CPU has; unset it")
    if len(machine.topology.nodes) > 1:
        found.append(
            f"{len(machine.topology.nodes)} NUMA nodes: stay on one, python -m torch_cpullm.cli launch ...; or start "
            "ranks, launch --sockets auto ..."
        )
    return tuple(found)


def _best(machine: Machine) -> str:
    has = set(machine.features)
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"} <= has:
        return "amx" if {"avx512vnni", "amxtile", "amxint8", "amxbf16"} <= has else "avx512"
    return "avx2" if {"avx2", "fma"} <= has else "scalar"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def info() -> Info:
    """Describe the machine, the ISA level in use, threads, OpenMP runtime, NUMA nodes and versions, with warnings."""
    machine, threads = detect_machine(), torch.get_num_threads()
    versions = [("torch_cpullm", VERSION), ("python", platform.python_version())]
    versions += [(name, _version(name)) for name in ("torch", "transformers", "accelerate")]
    return Info(machine, threads, tuple(versions), find_warnings(machine, threads, config.forced_isa()))
