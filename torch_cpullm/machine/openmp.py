"""Which OpenMP runtimes are loaded into this process. Two of them fight over the cores."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

_RUNTIME = re.compile(r"(libgomp|libiomp5|libomp)[^/]*\.so")


def runtimes_in_use(maps: Path = Path("/proc/self/maps")) -> tuple[str, ...]:
    """Paths of the loaded runtimes that parallel regions run in.

    With libiomp5 preloaded, libgomp is loaded as well and stays idle: libiomp5 defines the functions that GCC's code
    calls (GOMP_parallel and the like), and the first definition answers for all.
    """
    loaded = loaded_runtimes(maps)
    first = _file_at(_address("GOMP_parallel"), maps)
    return (first,) if first in loaded and "gomp" not in first.rsplit("/", 1)[-1] else loaded


def loaded_runtimes(maps: Path = Path("/proc/self/maps")) -> tuple[str, ...]:
    """Paths of the OpenMP runtimes among the mapped files, each once, in order of address."""
    paths = (line.split(maxsplit=5)[-1] for line in _lines(maps) if "/" in line)
    return tuple(dict.fromkeys(path for path in paths if _RUNTIME.match(path.rsplit("/", 1)[-1])))


def _address(function: str) -> int:
    """Where the process's first definition of `function` lies; 0 where it has none."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), function), ctypes.c_void_p).value or 0
    except AttributeError:
        return 0


def _file_at(address: int, maps: Path) -> str:
    """The mapped file at that address, "" for none."""
    for line in _lines(maps):
        first, _, last = line.split(maxsplit=1)[0].partition("-")
        if "/" in line and int(first, 16) <= address < int(last, 16):
            return line.split(maxsplit=5)[-1]
    return ""


def _lines(maps: Path) -> list[str]:
    try:
        return maps.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
