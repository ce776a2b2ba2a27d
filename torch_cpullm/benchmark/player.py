"""An engine in a process of its own: its threads and its OpenMP runtime are its own, and it may die alone."""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch_cpullm.benchmark.engines.engine import MissingEngineError
from torch_cpullm.benchmark.engines.roster import ENGINES, Contender

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path


class PlayerError(Exception):
    """The engine raised, or its process ended; the message is one line."""


@dataclass(frozen=True)
class Opened:
    """What loading took.

    Attributes:
        load_s: seconds from the call until the engine could be asked, imports apart.
        weight_bytes: see Engine.
        kv_bits: see Engine.
    """

    load_s: float
    weight_bytes: int
    kv_bits: int


@dataclass(frozen=True)
class Timed:
    """An `extend`, or a `decode`: seconds, or those between its tokens."""

    seconds: list[float]


class Player:
    """One contender's process; its methods wait for the answer."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        context = multiprocessing.get_context("spawn")  # a fork would inherit OpenMP's threads, which do not live on
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender.engine), daemon=True)
        self._process.start()
        theirs.close()

    def prepare(self, checkpoint: Path) -> Path:
        """See Engine. Raises MissingEngineError, or PlayerError."""
        prepared: Path = self._ask("prepare", checkpoint, self.contender.format.name)
        return prepared

    def open(self, prepared: Path, threads: int, batch: int, context: int) -> Opened:
        """Load the model."""
        opened: Opened = self._ask("open", prepared, self.contender.format.name, threads, batch, context)
        return opened

    def reset(self, batch: int) -> None:
        """See Engine."""
        self._ask("reset", batch)

    def extend(self, ids_BT: Any) -> Timed:
        """See Engine; timed where it runs."""
        timed: Timed = self._ask("extend", ids_BT)
        return timed

    def decode(self, tokens: int) -> Timed:
        """See Engine: `tokens` plus one are made, and the seconds between them returned."""
        timed: Timed = self._ask("decode", tokens)
        return timed

    def crop(self, length: int) -> None:
        """See Engine."""
        self._ask("crop", length)

    def peak_bytes(self) -> int:
        """The most memory the process has had at a time, mapped files included."""
        return int(self._ask("peak_bytes"))

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, what: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((what, arguments))
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(timeout=20)
            code = self._process.exitcode
            raise PlayerError(f"{self.contender.name}: its process ended in {what} (exit code {code})") from None
        if isinstance(answer, MissingEngineError):
            raise answer
        if isinstance(answer, _Raised):
            raise PlayerError(f"{self.contender.name}: {answer.text}")
        return answer


@dataclass(frozen=True)
class _Raised:
    text: str


def _serve(pipe: Connection, name: str) -> None:
    """The process: answers until the other end is closed."""
    desk = _Desk(name)
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = getattr(desk, what)(*arguments)
        except MissingEngineError as error:
            answer = error
        except Exception as error:  # noqa: BLE001  (whatever an engine raises is the other end's to judge)
            answer = _Raised(f"{type(error).__name__}: {error} {traceback.format_exc(limit=-1)}".replace("\n", " "))
        pipe.send(answer)


class _Desk:
    """What the process does for each question."""

    def __init__(self, name: str) -> None:
        self._kind = ENGINES[name]

    def prepare(self, checkpoint: Path, format: str) -> Path:
        return self._kind.prepare(checkpoint, format)

    def open(self, prepared: Path, format: str, threads: int, batch: int, context: int) -> Opened:
        start = time.perf_counter()
        self._engine = self._kind(prepared, format, threads, batch, context)
        return Opened(time.perf_counter() - start, self._engine.weight_bytes, self._engine.kv_bits)

    def reset(self, batch: int) -> None:
        self._engine.reset(batch)

    def extend(self, ids_BT: Any) -> Timed:
        start = time.perf_counter()
        self._engine.extend(ids_BT)
        return Timed([time.perf_counter() - start])

    def decode(self, tokens: int) -> Timed:
        times, _ = self._engine.decode(tokens + 1)
        return Timed([after - before for before, after in itertools.pairwise(times)])

    def crop(self, length: int) -> None:
        self._engine.crop(length)

    def peak_bytes(self) -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
