"""Children of fork(): the OpenMP team does not survive, and the next parallel region would wait for it for ever."""

from __future__ import annotations

import functools
import os

import torch


@functools.cache
def make_forks_safe() -> None:
    """From now on a forked child computes on one thread, in torch's own ops as in ours (csrc/runtime/parallel.h)."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
