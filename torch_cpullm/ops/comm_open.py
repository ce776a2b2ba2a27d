"""Groups of ranks that a library of others carries: oneCCL, and gloo as torch has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from torch_cpullm.ops.comm import collective
from torch_cpullm.ops.library import kernels


class Patience(NamedTuple):
    """How the ranks of a group wait for each other.

    Attributes:
        timeout_s: what any collective waits for another rank.
        pids: process of every rank, in their order; 0 for one that cannot be seen from here.
        crowded: there are more ranks on this host than CPUs for them.
    """

    timeout_s: float
    pids: Sequence[int]
    crowded: bool


def ccl_start(library: Path) -> bytes:
    """Start what the other ranks join, as rank 0; return where they find it.

    Args:
        library: our _ccl.so; oneCCL itself is in the process already.
    """
    with collective():
        address: torch.Tensor = kernels.ccl_start(str(library))
    return bytes(address.tolist())


def open_ccl(library: Path, address: bytes, rank: int, patience: Patience) -> int:
    """Join the other ranks, all of which come here at about the same time; return the number of the group.

    Raises:
        CollectiveError: oneCCL cannot reach them, or not be loaded.
    """
    place = torch.frombuffer(bytearray(address), dtype=torch.uint8)
    with collective():
        return int(
            kernels.open_ccl(str(library), place, rank, list(patience.pids), patience.timeout_s, patience.crowded)
        )


def open_gloo(name: str, patience: Patience) -> int:
    """Make a group of the process group of this name, whose backend it keeps alive; return its number."""
    return int(kernels.open_gloo(name, list(patience.pids), patience.timeout_s, patience.crowded))
