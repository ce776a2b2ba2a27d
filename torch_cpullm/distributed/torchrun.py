"""What torchrun does to the environment of its ranks, told from what the user did to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_VARIABLE = "OMP_NUM_THREADS"
_RUN = "TORCHELASTIC_RUN_ID"  # every rank of torchrun has it, torchrun itself has not


def has_set_threads(environment: Mapping[str, str], processes: Path = Path("/proc"), parent: int | None = None) -> bool:
    """Whether OMP_NUM_THREADS=1 is torchrun's own, which it sets where a host has several ranks.

    A user may have set the same 1. torchrun writes its own into its memory, and /proc tells what a process was started
    with: a variable that torchrun was started with is the user's. Where that cannot be read, 1 is taken for torchrun's.

    Args:
        environment: this rank's.
        processes: the folder /proc; tests pass one of their own.
        parent: the process that started this one; None: asked of the system.
    """
    if environment.get(_VARIABLE) != "1" or _RUN not in environment:
        return False
    pid = os.getppid() if parent is None else parent
    started_with = _started_with(processes, pid)
    while started_with and _RUN in started_with:  # a shell or the like between torchrun and the script
        pid = _parent(processes, pid)
        started_with = _started_with(processes, pid)
    return not (started_with and _VARIABLE in started_with)


def _started_with(processes: Path, pid: int) -> set[str] | None:
    """Names of the variables that a process was started with; None where the system does not say."""
    try:
        block = (processes / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    return {entry.partition(b"=")[0].decode(errors="replace") for entry in block.split(b"\0") if entry}


def _parent(processes: Path, pid: int) -> int:
    try:
        lines = (processes / str(pid) / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("PPid:")), 0)
