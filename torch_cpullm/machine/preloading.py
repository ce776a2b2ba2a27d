"""Libraries that take the place of others when they are loaded first: an OpenMP runtime, an allocator."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

from torch_cpullm.errors import ConfigError
from torch_cpullm.machine.settings import Host, Request, Setting


class _Library(NamedTuple):
    name: str
    files: re.Pattern[str]
    remedy: str


_LIBRARIES = {
    "intel": _Library("libiomp5", re.compile(r"libiomp5\.so[.\d]*"), "pip install intel-openmp"),
    "tcmalloc": _Library(
        "libtcmalloc",
        re.compile(r"libtcmalloc(_minimal)?\.so[.\d]*"),
        "install libtcmalloc-minimal4 (apt) or gperftools-libs (dnf)",
    ),
    "jemalloc": _Library(
        "libjemalloc", re.compile(r"libjemalloc\.so[.\d]*"), "install libjemalloc2 (apt) or jemalloc (dnf)"
    ),
}
_FOLDERS = (
    Path(sys.prefix) / "lib",
    *map(Path, ("/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")),
)


@dataclass(frozen=True)
class Preload:
    """What is loaded first, if anything, and which runtime and allocator the process has with it."""

    variable: Setting | None
    openmp: str
    malloc: str


def find_libraries(folders: Iterable[Path] = _FOLDERS) -> dict[str, str]:
    """Paths by the option's word: libiomp5 of the package intel-openmp, everything else from `folders`."""
    found = {}
    here = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    for word, library in _LIBRARIES.items():
        candidates = [*(_of_package("intel-openmp") if word == "intel" else ()), *here]
        match = next((path for path in candidates if library.files.fullmatch(path.name) and path.is_file()), None)
        if match is not None:
            found[word] = str(match)
    return found


def _of_package(name: str) -> list[Path]:
    try:
        return [Path(str(entry.locate())).resolve() for entry in files(name) or ()]
    except PackageNotFoundError:
        return []


def choose_preload(request: Request, host: Host) -> Preload:
    """Choose the OpenMP runtime and the allocator.

    Raises:
        ConfigError: what was asked for is not installed, or cannot go with variables that are set.
    """
    openmp, new_openmp = _choose(request.openmp, "openmp", ("gnu", "intel"), host)
    malloc, new_malloc = _choose(request.malloc, "malloc", ("system", "tcmalloc", "jemalloc"), host)
    binding = _what_binds(host.environment)
    if openmp == "intel" and binding:
        raise ConfigError(
            f"openmp: expected {binding} not to be set beside intel, got {host.environment[binding]!r}, with which all "
            f"threads would share one CPU; unset {binding}, and add --bind to bind threads"
        )
    present = host.environment.get("LD_PRELOAD")
    new = [path for path in (new_openmp, new_malloc) if path]
    if not new:
        kept = Setting("LD_PRELOAD", present, "set by you", kept=True) if present else None
        return Preload(kept, openmp, malloc)
    why = " and ".join(word for word, path in ((f"OpenMP: {openmp}", new_openmp), (malloc, new_malloc)) if path)
    return Preload(Setting("LD_PRELOAD", ":".join([*new, *([present] if present else [])]), why), openmp, malloc)


def _what_binds(environment: Mapping[str, str]) -> str | None:
    """The variable that makes libgomp bind threads.

    It does so even where libiomp5 runs everything: the first thread is on one CPU already when libiomp5 looks which
    CPUs there are, and then all threads are on that one.
    """
    if environment.get("OMP_PROC_BIND"):
        return None if environment["OMP_PROC_BIND"].lower() == "false" else "OMP_PROC_BIND"
    return next((name for name in ("OMP_PLACES", "GOMP_CPU_AFFINITY") if environment.get(name)), None)


def _choose(word: str, option: str, words: tuple[str, ...], host: Host) -> tuple[str, str | None]:
    """The choice among `words`, of which the first one needs no library; and what to preload for it, if anything."""
    names = [path.rsplit("/", 1)[-1] for path in re.split(r"[ :]+", host.environment.get("LD_PRELOAD", ""))]
    loaded = next((other for other in words[1:] for name in names if _LIBRARIES[other].files.fullmatch(name)), None)
    if loaded and word in ("auto", loaded):
        return loaded, None
    if loaded:
        raise ConfigError(
            f"{option}: expected no {_LIBRARIES[loaded].name} in LD_PRELOAD beside --{option} {word}, got "
            f"'{host.environment['LD_PRELOAD']}'; unset LD_PRELOAD, or leave --{option} out"
        )
    if word in ("auto", words[0]):
        return words[0], None
    path = host.libraries.get(word)
    if path is None:
        library = _LIBRARIES[word]
        raise ConfigError(
            f"{option}: expected {library.name} to be installed for {word}, found none; {library.remedy}, or leave "
            f"--{option} out"
        )
    if re.search(r"[ :]", path):
        raise ConfigError(
            f"{option}: expected a path without blanks and colons, which LD_PRELOAD cannot hold, got '{path}'; "
            f"move it, or leave --{option} out"
        )
    return word, path
