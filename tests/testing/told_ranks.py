"""What the ranks of test_ranks.py do."""

import os
import signal
from pathlib import Path

import torch

from torch_cpullm.ops import introspect
from torch_cpullm.ops.comm import all_reduce_, close_group, shm_create


def told(rank, size, store, *arguments):
    """Where and as what a rank runs; threads of what it was forked from, and its own after one of our regions."""
    torch.set_num_threads(1)
    x = torch.zeros(1 << 20)
    torch.set_num_threads(2)
    group, _ = shm_create(1, 60.0)
    all_reduce_(x, group)
    close_group(group)
    return {
        "rank": (rank, size),
        "arguments": list(arguments),
        "folder": str(Path.cwd()),
        "variables": dict(os.environ),
        "level": introspect.isa_level(),
        "threads of the server": len(list(Path(f"/proc/{os.getppid()}/task").iterdir())),
        "own threads": len(list(Path("/proc/self/task").iterdir())),
        "process": os.getpid(),
    }


def ends(rank, size, store, how):
    """The last rank does not answer."""
    if rank < size - 1:
        return os.getpid()
    if how == "raises":
        raise KeyError("of the rank's own")
    os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    return None
