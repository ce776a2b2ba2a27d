"""On which NUMA nodes Linux puts the pages that this thread, and threads it starts, touch first.

The C library has no function for it and libnuma is not everywhere, so the two system calls are made by number.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

# x86-64's numbers, and the words of linux/mempolicy.h
_SET_MEMPOLICY, _GET_MEMPOLICY = 238, 239
_PREFERRED, _INTERLEAVE = 1, 3
_BITS = 64  # of an unsigned long, of which a mask of nodes is made


def has_memory_policy() -> bool:
    """Whether somebody has set a policy for this thread already, as numactl does."""
    mode = ctypes.c_int(0)
    called = _syscall(_GET_MEMPOLICY, ctypes.byref(mode), None, ctypes.c_ulong(0), None, ctypes.c_ulong(0))
    return called == 0 and mode.value != 0


def put_memory_on(nodes: Sequence[int]) -> None:
    """Take new pages from one node while it has any; from several nodes by turns.

    By turns, because what one thread writes (a loaded checkpoint) would else lie on that thread's node alone, and all
    threads would wait for that one memory. Pages that exist stay where they are.

    Raises:
        OSError: the system refuses, as containers may.
    """
    words = (ctypes.c_ulong * (max(nodes) // _BITS + 1))()
    for node in nodes:
        words[node // _BITS] |= 1 << node % _BITS
    mode = ctypes.c_int(_PREFERRED if len(nodes) == 1 else _INTERLEAVE)
    bits = ctypes.c_ulong(len(words) * _BITS + 1)  # the kernel reads one less
    if _syscall(_SET_MEMPOLICY, mode, words, bits) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _syscall(number: int, *arguments: object) -> int:
    called: int = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments)
    return called
