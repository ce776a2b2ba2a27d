"""Which OpenMP runtimes are loaded into this process. Two of them fight over the cores."""

from __future__ import annotations

import re
from pathlib import Path

_RUNTIME = re.compile(r"(libgomp|libiomp5|libomp)[^/]*\.so")


def loaded_runtimes(maps: Path = Path("/proc/self/maps")) -> tuple[str, ...]:
    """Paths of the OpenMP runtimes among the mapped files, each once, in order of address."""
    try:
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    paths = (line.split(maxsplit=5)[-1] for line in lines if "/" in line)
    return tuple(dict.fromkeys(path for path in paths if _RUNTIME.match(path.rsplit("/", 1)[-1])))
