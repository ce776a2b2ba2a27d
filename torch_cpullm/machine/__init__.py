"""Who runs it: cores, caches, NUMA nodes, limits of the container, OpenMP runtimes, measured limits."""

from torch_cpullm.machine.container import memory_limit_bytes
from torch_cpullm.machine.info import Info, info
from torch_cpullm.machine.machine import Machine, detect_machine
from torch_cpullm.machine.mapped import MappedFiles
from torch_cpullm.machine.tuning import apply_tuning, tune

__all__ = ["Info", "Machine", "MappedFiles", "apply_tuning", "detect_machine", "info", "memory_limit_bytes", "tune"]
