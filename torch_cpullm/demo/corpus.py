"""The text the bundled model learns: the source code of CPython's standard library.

The library ships with every interpreter under the permissive PSF licence, so the corpus needs no download and can be
rebuilt anywhere. Validation holds out *whole packages together with their tests*, never random files: neighbouring
files of one package share so much text that a random split would measure memory, not language modelling.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_PACKAGES = (
    "concurrent",
    "email",
    "html",
    "json",
    "logging",
    "sqlite3",
    "tomllib",
    "urllib",
    "wsgiref",
    "zoneinfo",
)
"""Packages (and their tests) no training token comes from: data formats, networking, concurrency, a database, time."""

# Generated tables and vendored wheels: megabytes of numbers that teach nothing about language.
SKIPPED_PARTS = frozenset({"site-packages", "__pycache__", "pydoc_data", "ensurepip", "encodings", "lib2to3"})
MAX_FILE_BYTES = 400_000


@dataclass(frozen=True)
class Corpus:
    """The two sides of the split, each a list of whole files, with what is needed to name them."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    held_out_files: tuple[str, ...]
    source: str
    digest: str

    def __repr__(self) -> str:
        """Count what a reader wants to know: files and bytes of both sides."""
        sizes = [sum(len(text.encode()) for text in side) / 1e6 for side in (self.train, self.held_out)]
        return (
            f"Corpus({self.source}: train {len(self.train)} files {sizes[0]:.1f} MB, "
            f"held out {len(self.held_out)} files {sizes[1]:.2f} MB, sha256 {self.digest[:12]})"
        )


def is_held_out(path: Path) -> bool:
    """Say whether `path`, relative to the library, belongs to a held-out package or to its tests."""
    names = {part.removesuffix(".py") for part in path.parts}
    return any(
        package in names or any(name == f"test_{package}" or name.startswith(f"test_{package}_") for name in names)
        for package in HELD_OUT_PACKAGES
    )


def read_stdlib(root: Path | None = None) -> Corpus:
    """Read every Python file of the standard library at `root` (default: the running interpreter's own).

    Raises:
        FileNotFoundError: `root` holds no Python files (a stripped interpreter); the message says what to pass.
    """
    library = root or Path(sysconfig.get_path("stdlib"))
    train: list[str] = []
    held_out: list[str] = []
    held_out_files: list[str] = []
    digest = hashlib.sha256()
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if SKIPPED_PARTS.intersection(relative.parts) or path.stat().st_size > MAX_FILE_BYTES:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a handful of test files are in other encodings on purpose
        digest.update(str(relative).encode() + b"\0" + text.encode() + b"\0")
        if is_held_out(relative):
            held_out.append(text)
            held_out_files.append(relative.as_posix())
        else:
            train.append(text)
    if not train or not held_out:
        raise FileNotFoundError(
            f"stdlib: expected the Lib folder of a full CPython, found no usable .py files in {library}; "
            "pass --stdlib with the path of one"
        )
    return Corpus(
        train=tuple(train),
        held_out=tuple(held_out),
        held_out_files=tuple(held_out_files),
        source=f"CPython {platform.python_version()} standard library"
        if root is None
        else f"standard library at {library.name}",
        digest=digest.hexdigest(),
    )


def excerpt(texts: tuple[str, ...], size: int) -> str:
    """Take an equal share of each file, whole lines, about `size` bytes in all: every held-out package is heard."""
    share = max(1, size // len(texts))
    pieces = []
    for text in texts:
        cut = text[:share]
        pieces.append(cut[: cut.rfind("\n") + 1])
    return "\n".join(pieces)
