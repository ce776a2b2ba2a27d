"""Whether large buffers get huge pages by themselves."""

from __future__ import annotations

from pathlib import Path

REMEDY = "no huge pages; as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"


def transparent_huge_pages(file: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> str | None:
    """Return "always", "madvise" or "never"; None where the system does not say."""
    try:
        text = file.read_text(encoding="ascii")
    except OSError:
        return None
    chosen = [word[1:-1] for word in text.split() if word.startswith("[")]
    return chosen[0] if chosen else None
