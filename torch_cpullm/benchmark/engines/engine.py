"""What the bench asks of an engine: a model in one format, whose context grows, is decoded from, and is cut back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]


class MissingEngineError(Exception):
    """An engine cannot take part; the message is one line that says what to install or why."""


@dataclass(frozen=True)
class Format:
    """One of an engine's formats.

    Attributes:
        name: as the engine's users call it ("Q8_0", "int8").
        bits: of a weight, scales aside: what it may be compared with.
    """

    name: str
    bits: Literal[4, 8, 16, 32]


class Engine(ABC):
    """A loaded model and its KV cache. It lives in a process of its own and computes with `threads` threads.

    `B` sequences hold equally many tokens: `length`. Everything is greedy, nothing stops at an end-of-text token, and
    the clock around a call counts all that a user would wait for.
    """

    formats: tuple[Format, ...]
    kv_bits: int = 16
    """Of an element of the KV cache, scales aside."""

    weight_bytes: int
    """Of all weights as they lie in memory, tables of embeddings included."""

    @classmethod
    @abstractmethod
    def prepare(cls, checkpoint: Path, format: str) -> Path:
        """Write what the engine loads, beside `checkpoint`, unless it is there already.

        Args:
            checkpoint: a folder of transformers' save_pretrained: config.json, bf16 model.safetensors (maybe sharded).
            format: a name of `formats`.

        Returns:
            What `__init__` takes.

        Raises:
            MissingEngineError: the engine is not installed, or does not know the architecture.
        """

    @abstractmethod
    def __init__(self, prepared: Path, format: str, threads: int, batch: int, context: int) -> None:
        """Load.

        Args:
            prepared: from `prepare`.
            format: the same as there.
            threads: to compute with.
            batch: the most sequences that will be asked for.
            context: the most tokens that each will hold.
        """

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens that each sequence holds."""

    @abstractmethod
    def reset(self, batch: int) -> None:
        """Forget all tokens; from now on there are `batch` sequences."""

    @abstractmethod
    def extend(self, ids_BT: Ids) -> Ids:
        """Append T tokens to each sequence in one go, as a prompt, and remember the most likely next token of each.

        Returns:
            Those tokens [B]; they are not held yet.
        """

    @abstractmethod
    def decode(self, tokens: int) -> tuple[list[float], Ids]:
        """Generate greedily: `tokens` times, append the token that is remembered and find the next one.

        Returns:
            When each of the tokens found was known, [tokens] seconds of time.perf_counter(); and the tokens [B,
            tokens]. The last is remembered, not held, so `length` grows by `tokens`.
        """

    @abstractmethod
    def crop(self, length: int) -> None:
        """Forget the tokens after the first `length` (at least 1) of each sequence, not the one that is remembered."""
