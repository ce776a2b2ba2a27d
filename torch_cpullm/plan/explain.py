"""What optimize() did, module by module, as a value that prints as a table."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One part of the model: what it is now (`action`), its bytes before and after, and why."""

    path: str
    class_name: str
    action: str
    bytes_before: int
    bytes_after: int
    reason: str


@dataclass(frozen=True)
class Explanation:
    """All parts that were considered.

    Attributes:
        swapped: parts that were replaced.
        left_alone: parts that were not, with the reason.
        weight_bytes_before: bytes of all parameters and buffers before, shared ones once.
        weight_bytes_after: the same now.
        kv_bytes_per_token: of the cache in use now, scales included.
        kv_bytes_per_token_before: of transformers' own cache.
        notes: decisions about the model as a whole.
    """

    model: str
    swapped: tuple[Row, ...]
    left_alone: tuple[Row, ...]
    weight_bytes_before: int
    weight_bytes_after: int
    kv_bytes_per_token: float
    kv_bytes_per_token_before: float
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """The table."""
        lines = [f"{self.model}: {len(self.swapped)} parts swapped, {len(self.left_alone)} left alone"]
        rows = [*self.swapped, *self.left_alone]
        width = max((len(row.path) for row in rows), default=0)
        action = max((len(row.action) for row in rows), default=0)
        lines += [
            f"  {row.path:<{width}}  {row.action:<{action}}  "
            f"{_size(row.bytes_before):>9} -> {_size(row.bytes_after):>9}  {row.class_name}: {row.reason}"
            for row in rows
        ]
        lines.append(f"weights {_size(self.weight_bytes_before)} -> {_size(self.weight_bytes_after)}")
        lines.append(f"KV cache {self.kv_bytes_per_token_before:.0f} -> {self.kv_bytes_per_token:.0f} bytes per token")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
