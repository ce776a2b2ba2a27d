"""`torch-cpullm launch --sockets`: real ranks, how they end, and what of them is seen."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torch_cpullm.machine.container import cpu_quota

OF_RUNTIMES = ("OMP_", "GOMP_", "KMP_", "MKL_", "LD_PRELOAD", "GLIBC_TUNABLES", "TORCHELASTIC_")
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
EVENTUALLY_S = 300.0

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks need two CPUs")

REPORT = """
import json, os, sys
import torch, torch_cpullm
world = torch_cpullm.distributed.init()
sys.stdout.write(json.dumps({
    "rank": world.rank, "size": world.size, "cpus": sorted(os.sched_getaffinity(0)), "bound": world.binding.cpus,
    "threads": torch.get_num_threads(), "variable": os.environ["OMP_NUM_THREADS"], "arguments": sys.argv[1:],
    "typed": sys.stdin.read(),
}) + "\\n")
sys.stderr.write(f"error stream of {world.rank}\\n")
"""
SLEEP = """
import os, sys, time
print(os.environ["RANK"], os.getpid(), file=sys.stderr, flush=True)
time.sleep(3600)
"""
FAIL = """
import os, sys, time
if os.environ["RANK"] == "1":
    END
time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def _own_temporary_files(tmp_path, monkeypatch):
    """A launcher that is killed leaves its folder behind."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def started(script, *arguments):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith((*OF_RUNTIMES, *OF_RANKS))}
    return subprocess.Popen(
        [sys.executable, "-m", "torch_cpullm.cli", "launch", "--quiet", "--sockets", "2", str(script), *arguments],
        env={**inherited, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of_sleepers(launcher):
    """The process of each rank, as soon as both have said theirs."""
    lines = [launcher.stderr.readline().removeprefix("[rank 1] ").split() for _ in range(2)]
    return {int(rank): int(pid) for rank, pid in lines}


def assert_gone(pids):
    deadline = time.monotonic() + EVENTUALLY_S
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.05)


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # one that nobody waits for


def test_ranks_have_cpus_of_their_own(script):
    launcher = started(script(REPORT), "--its", "argument")
    output, errors = launcher.communicate("typed\n")
    assert launcher.returncode == 0, errors
    first = json.loads(output)  # and nothing else is on stdout
    lines = errors.splitlines()
    assert sorted(line for line in lines if "error stream" in line) == [
        "[rank 1] error stream of 1",
        "error stream of 0",
    ]
    second = json.loads(next(line for line in lines if line.startswith("[rank 1] {")).removeprefix("[rank 1] "))
    assert (first["rank"], second["rank"]) == (0, 1)
    assert not set(first["cpus"]) & set(second["cpus"])
    quota = max(1, int((cpu_quota() or len(os.sched_getaffinity(0))) / 2))
    for report in (first, second):
        assert report["size"] == 2
        assert report["bound"] == report["cpus"]
        assert report["threads"] == int(report["variable"]) == min(len(report["cpus"]), quota)
        assert report["arguments"] == ["--its", "argument"]
    assert (first["typed"], second["typed"]) == ("typed\n", "")  # one reader


@pytest.mark.parametrize(
    ("end", "status", "words"),
    [
        ("sys.exit(7)", 7, "rank 1 ended with exit status 7, and so all ranks were ended"),
        ("os.kill(os.getpid(), 9)", 137, "rank 1 ended with signal 9, and so all ranks were ended"),
        ("raise ValueError('no')", 1, "[rank 1] ValueError: no"),
    ],
)
def test_a_rank_that_fails_ends_the_others(end, status, words, script):
    launcher = started(script(FAIL.replace("END", end)))
    output, errors = launcher.communicate()
    assert launcher.returncode == status
    assert words in errors.splitlines()
    assert output == ""


@pytest.mark.parametrize(
    ("signal_", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_rank_outlives_the_launcher(signal_, status, script):
    launcher = started(script(SLEEP))
    ranks = processes_of_sleepers(launcher)
    assert sorted(ranks) == [0, 1]
    launcher.send_signal(signal_)
    launcher.communicate()
    assert launcher.returncode == status
    assert_gone(ranks.values())


def test_a_command_of_ours_speaks_once():
    launcher = started("generate", "demo", "--prompt", "def read(", "--max-new-tokens", "4")
    output, errors = launcher.communicate()
    assert launcher.returncode == 0, errors
    assert output.strip()
    assert sum("tokens/s" in line for line in errors.splitlines()) == 1
