"""Runs a function in several processes that share a store, as torchrun would, and collects what became of each.

The processes are forked from a server that has imported torch and transformers and computed nothing: a rank is there in
half a second instead of five. They end without taking the interpreter down, so what happens at a process's exit is left
to tests that start one.
"""

from __future__ import annotations

import io
import multiprocessing
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # torch leaves them out of __all__

from torch_cpullm import config

RankFunction = Callable[..., Any]
"""function(rank, size, store, *arguments) -> tensors, numbers, texts, and lists, tuples and dicts of them."""

_HOST = "127.0.0.1"
_SECONDS_TO_EXIT = 300.0

_SERVED = multiprocessing.get_context("forkserver")
# What torch_cpullm and its models import of others. Not torch_cpullm itself: loaded before a fork, it would compute on
# one thread (csrc/runtime/parallel.h).
_PRELOADED = [
    "torch.distributed.rendezvous",
    "transformers.generation.streamers",
    "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama",
    "transformers.quantizers.auto",
]


def run_ranks(
    function: RankFunction, size: int, *arguments: Any, timeout_s: float = 900.0, lost: Collection[int] = ()
) -> list[Any]:
    """Call function(rank, size, store, *arguments) in `size` new processes; return the results in the order of ranks.

    Args:
        function: of a module that the processes can import.
        size: how many.
        arguments: what can be pickled.
        timeout_s: for all of it. A deadline against hanging, not a measurement.
        lost: ranks that are meant to end, or to stop, without an answer: None stands for theirs.

    Raises:
        RuntimeError: a rank raised (with its traceback), died, gave no answer in time, or would not exit after it.
    """
    _SERVED.set_forkserver_preload(_PRELOADED)
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    ranks = [_Started(rank, size, store.port, function, arguments) for rank in range(size)]
    try:
        deadline = time.monotonic() + timeout_s
        expected = {started.answers: started for started in ranks if started.rank not in lost}
        while expected and (ready := wait(list(expected), max(0.0, deadline - time.monotonic()))):
            for answers in ready:
                expected.pop(answers).receive()  # type: ignore[call-overload]
        faults = [f"rank {started.rank}: no answer within {timeout_s:g} s" for started in expected.values()]
        faults += [started.fault() for started in ranks if started.rank not in lost and not expected]
    finally:
        for started in ranks:
            started.end()
    if any(faults):
        raise RuntimeError("\n".join(fault for fault in faults if fault))
    return [started.result for started in ranks]


@dataclass(frozen=True)
class _Task:
    """What a rank's process is told. Threads and variables are the parent's now: the server has those of its start."""

    function: RankFunction
    rank: int
    size: int
    port: int
    arguments: tuple[Any, ...]
    threads: int
    environment: Mapping[str, str]


class _Started:
    """One rank's process, and what it answered."""

    def __init__(self, rank: int, size: int, port: int, function: RankFunction, arguments: tuple[Any, ...]) -> None:
        self.rank = rank
        self.result: Any = None
        self._error = ""
        self.answers, answer = _SERVED.Pipe(duplex=False)
        task = _Task(function, rank, size, port, arguments, torch.get_num_threads(), config.environment())
        self._process: ForkServerProcess = _SERVED.Process(target=_be_rank, args=(answer, task))
        self._process.start()
        answer.close()

    def receive(self) -> None:
        """Take the answer of a rank that has one, or that has ended."""
        try:
            error, result = self.answers.recv()
        except EOFError:
            self._process.join(_SECONDS_TO_EXIT)
            self._error = f"it ended without an answer, exit status {self._process.exitcode}"
            return
        self._error = error
        self.result = None if result is None else torch.load(io.BytesIO(result), weights_only=True)

    def fault(self) -> str:
        """What went wrong with a rank that has answered; waits for its exit."""
        self._process.join(_SECONDS_TO_EXIT)
        if not self._error and self._process.exitcode != 0:
            self._error = f"its exit status is {self._process.exitcode} (None: it did not exit)"
        return f"rank {self.rank}: {self._error}" if self._error else ""

    def end(self) -> None:
        """Leave no process behind, not even a stopped one."""
        self._process.kill()
        self._process.join()
        self.answers.close()


def _be_rank(answer: Connection, task: _Task) -> None:
    config.replace_environment(task.environment)
    torch.set_num_threads(task.threads)
    try:
        store: Store = TCPStore(_HOST, task.port, is_master=False, timeout=timedelta(seconds=900))
        result = io.BytesIO()
        torch.save(task.function(task.rank, task.size, store, *task.arguments), result)
        answer.send(("", result.getvalue()))
    except BaseException:  # noqa: BLE001  (the parent tells, and nobody else reads this process's output)
        answer.send((traceback.format_exc(), None))
