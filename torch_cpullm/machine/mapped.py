"""Files under tensors: which parts of the address space they fill, and giving their pages back.

A checkpoint's tensors are views of its mapped files. Reading them brings pages in; releasing forgets that they were
read, not what is in them: the next look reads the file again, mostly from the system's own cache of it.
"""

from __future__ import annotations

import ctypes
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

_MADV_DONTNEED = 4
_HEADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")


@dataclass(frozen=True)
class FileMapping:
    """Addresses start <= a < stop of one mapped file, in which this process has written nothing."""

    start: int
    stop: int


@dataclass(frozen=True)
class MappedFiles:
    """The mappings that some tensors lie in."""

    mappings: tuple[FileMapping, ...]

    @classmethod
    def under(cls, tensors: Iterable[torch.Tensor], smaps: Path = Path("/proc/self/smaps")) -> MappedFiles:
        """Find those of `tensors`; none where the system does not tell."""
        addresses = [tensor.data_ptr() for tensor in tensors if tensor.device.type == "cpu"]
        return cls(
            tuple(
                mapping
                for mapping in _unwritten(smaps)
                if any(mapping.start <= address < mapping.stop for address in addresses)
            )
        )

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` starts in one of them."""
        return tensor.device.type == "cpu" and any(m.start <= tensor.data_ptr() < m.stop for m in self.mappings)

    def release(self) -> None:
        """Give back the pages that were read. What somebody had written there meanwhile would be lost."""
        for mapping in self.mappings:
            _libc().madvise(mapping.start, mapping.stop - mapping.start, _MADV_DONTNEED)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc


def _unwritten(smaps: Path) -> list[FileMapping]:
    """Mapped files of which no page is this process's own copy, as a page written to in a private mapping becomes."""
    try:
        lines = smaps.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[FileMapping] = []
    mapping: FileMapping | None = None
    for line in lines:
        header = _HEADER.match(line)
        if header:
            start, stop, inode = int(header[1], 16), int(header[2], 16), int(header[3])
            mapping = FileMapping(start, stop) if inode else None
        elif mapping and line.split() == ["Anonymous:", "0", "kB"]:
            found.append(mapping)
    return found
