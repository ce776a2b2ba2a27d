"""Several ranks on this host, from start to end, by torch's own manager of processes (torch.distributed.elastic).

    rank 0          stdin, stdout and stderr of the launcher: what a user sees is what one process would show
    other ranks     both streams on the launcher's stderr, each line after "[rank 1] "; stdin is empty

The first rank that fails ends the others, and its exit status is the launcher's. Ctrl-C reaches all of them.
"""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from rich.console import Console
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch leaves it out of __all__
from torch.distributed.elastic.multiprocessing import (
    DefaultLogsSpecs,
    PContext,
    SignalException,
    Std,
    start_processes,
)

from torch_cpullm.machine.settings import Settings

_HOST = "127.0.0.1"
_POLL_S = 0.1
_SECONDS_TO_END = 10  # after Ctrl-C; then SIGKILL


def run_ranks(command: Sequence[str], ranks: Sequence[Settings]) -> int:
    """Run `command` once for each of `ranks`, all on this host; return the exit status."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it would say is said below
    store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)  # ranks meet here, as in torchrun's own
    with tempfile.TemporaryDirectory(prefix="torch_cpullm-") as folder:
        started = _start(command, ranks, store.port, folder)
        try:
            return _status(started)
        except SignalException as caught:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient user's second Ctrl-C would leave ranks behind
            started.close(death_sig=caught.sigval, timeout=_SECONDS_TO_END)
            return 128 + caught.sigval


def _start(command: Sequence[str], ranks: Sequence[Settings], port: int, folder: str) -> PContext:
    count, seat = len(ranks), Path(__file__).with_name("seat.py")
    others = range(1, count)
    with redirect_stdout(sys.stderr):  # where it shall repeat what it reads from the other ranks' files
        return start_processes(
            name="rank",
            entrypoint=sys.executable,
            args={
                rank: ("-IS", str(seat), str(rank), ",".join(map(str, settings.cpus)), *command)
                for rank, settings in enumerate(ranks)
            },
            envs={rank: _variables(rank, count, port, settings) for rank, settings in enumerate(ranks)},
            logs_specs=DefaultLogsSpecs(log_dir=folder, tee=dict.fromkeys(others, Std.ALL)),
            log_line_prefixes={rank: f"[rank {rank}] " for rank in others},
        )


def _variables(rank: int, count: int, port: int, settings: Settings) -> dict[str, str]:
    """What torchrun would give a rank of one host, and what `settings` adds."""
    seat = {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), rank),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), count),
        "GROUP_RANK": 0,
        "GROUP_WORLD_SIZE": 1,
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # the launcher keeps the store, not rank 0
        "PYTHONUNBUFFERED": 1,  # other ranks write to files, and their lines shall be seen when they are written
    }
    return {
        **{name: str(value) for name, value in seat.items()},
        **{variable.name: variable.value for variable in settings.variables},
    }


def _status(started: PContext) -> int:
    result = started.wait(period=_POLL_S)
    if result is None or not result.failures:
        return 0
    first = next(iter(result.failures.values()))  # in order of their ends
    status = first.exitcode if first.exitcode >= 0 else 128 - first.exitcode
    ended = f"signal {-first.exitcode}" if first.exitcode < 0 else f"exit status {status}"
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"rank {first.local_rank} ended with {ended}, and so all ranks were ended", style="red", markup=False
    )
    return status
