"""Which rank a process is: torchrun's variables, whole, broken and absent; and init() in real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from torch_cpullm import config, distributed
from torch_cpullm.distributed.start import _masks
from torch_cpullm.distributed.torchrun import has_set_threads
from torch_cpullm.distributed.world import World, read_world
from torch_cpullm.errors import ConfigError, RankError

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
OF_TORCHRUN = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"),
)


def seat(rank, size, local_rank, local_size, **more):
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_size, **more}
    return {**MEETING, **{name: str(number) for name, number in numbers.items()}}


def inherited():
    return {name: value for name, value in os.environ.items() if name not in OF_TORCHRUN}


def test_what_torchrun_gives():
    environment = seat(5, 8, 1, 4, GROUP_RANK=1, GROUP_WORLD_SIZE=2)
    assert read_world(environment) == World(5, 8, 1, 4, 1, 2)
    assert str(read_world(environment)) == "rank 5 of 8 (local rank 1 of 4 on host 1 of 2)"


def test_hosts_are_counted_where_variables_were_set_by_hand():
    assert read_world(seat(5, 8, 1, 4)) == World(5, 8, 1, 4, 1, 2)
    assert read_world(seat(1, 2, 1, 2)) == World(1, 2, 1, 2, 0, 1)


def test_hosts_with_different_numbers_of_ranks():
    assert read_world(seat(4, 5, 0, 1, GROUP_RANK=1, GROUP_WORLD_SIZE=2)) == World(4, 5, 0, 1, 1, 2)


def test_without_torchrun_there_is_no_world():
    assert read_world({}) is None
    assert read_world({"MASTER_ADDR": "somewhere", "OMP_NUM_THREADS": "4"}) is None


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"])
def test_a_missing_variable_is_named_with_the_remedy(missing):
    environment = seat(0, 2, 0, 2)
    del environment[missing]
    with pytest.raises(
        ConfigError, match=rf"^{missing}: expected beside .*torchrun --nproc-per-node N or torch-cpullm"
    ):
        read_world(environment)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (seat(2, 2, 0, 2), "RANK: expected less than WORLD_SIZE=2, got 2"),
        (seat(0, 0, 0, 0), "RANK: expected less than WORLD_SIZE=0, got 0"),
        (seat(0, 2, 2, 2), "LOCAL_RANK: expected less than LOCAL_WORLD_SIZE=2, got 2"),
        (seat(0, 2, 0, 2, GROUP_RANK=1, GROUP_WORLD_SIZE=1), "GROUP_RANK: expected less than GROUP_WORLD_SIZE=1"),
        (seat(0, 2, 0, 4), r"LOCAL_WORLD_SIZE: expected 2 ranks on 1 host\(s\), got 4"),
        (seat(0, 4, 0, 2, GROUP_RANK=0, GROUP_WORLD_SIZE=1), r"expected 4 ranks on 1 host\(s\), got 2"),
        (seat(0, 2, 0, 2, GROUP_RANK=0, GROUP_WORLD_SIZE=2), r"expected 2 ranks on 2 host\(s\), got 2"),
        ({**seat(0, 2, 0, 2), "RANK": "-1"}, "RANK: expected a whole number, got '-1'"),
        ({**seat(0, 2, 0, 2), "MASTER_PORT": "http"}, "MASTER_PORT: expected a whole number, got 'http'"),
    ],
)
def test_contradictions(environment, words):
    with pytest.raises(ConfigError, match=words):
        read_world(environment)


def test_timeout_and_transport(monkeypatch):
    monkeypatch.delenv("TORCH_CPULLM_COMM_TIMEOUT", raising=False)
    monkeypatch.delenv("TORCH_CPULLM_COMM", raising=False)
    assert (config.comm_timeout_s(), config.comm_timeout_s(0.5), config.comm_transport()) == (5.0, 0.5, "auto")
    monkeypatch.setenv("TORCH_CPULLM_COMM_TIMEOUT", "2.5")
    monkeypatch.setenv("TORCH_CPULLM_COMM", "shm")
    assert (config.comm_timeout_s(), config.comm_timeout_s(7), config.comm_transport()) == (2.5, 7.0, "shm")
    monkeypatch.setenv("TORCH_CPULLM_COMM", "mpi")
    with pytest.raises(ConfigError, match="TORCH_CPULLM_COMM: expected one of auto, ccl, shm, gloo, got 'mpi'"):
        config.comm_transport()


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
def test_a_timeout_is_a_positive_number(text, monkeypatch):
    monkeypatch.setenv("TORCH_CPULLM_COMM_TIMEOUT", text)
    with pytest.raises(ConfigError, match=f"TORCH_CPULLM_COMM_TIMEOUT: expected a positive .* got '{text}'"):
        config.comm_timeout_s()
    with pytest.raises(ConfigError, match=r"timeout_s: expected a positive number of seconds, got -3"):
        config.comm_timeout_s(-3)


def process(root, pid, environ, parent=1):
    (root / str(pid)).mkdir()
    (root / str(pid) / "environ").write_bytes(b"".join(f"{name}={value}\0".encode() for name, value in environ.items()))
    (root / str(pid) / "status").write_text(f"Name:\tpython\nPPid:\t{parent}\n")


@pytest.mark.parametrize(
    ("of_rank", "of_torchrun", "set_by_torchrun"),
    [
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, {"PATH": "/bin"}, True),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, {"OMP_NUM_THREADS": "1"}, False),
        ({"OMP_NUM_THREADS": "2", "TORCHELASTIC_RUN_ID": "none"}, {}, False),
        ({"OMP_NUM_THREADS": "1"}, {}, False),  # not of torchrun
        ({"TORCHELASTIC_RUN_ID": "none"}, {}, False),
    ],
)
def test_the_thread_of_torchrun_is_told_from_the_users(of_rank, of_torchrun, set_by_torchrun, tmp_path):
    process(tmp_path, 7, of_torchrun)
    process(tmp_path, 8, of_rank, parent=7)  # a shell between
    assert has_set_threads(of_rank, tmp_path, 7) == set_by_torchrun
    assert has_set_threads(of_rank, tmp_path, 8) == set_by_torchrun


def test_a_system_that_does_not_tell_what_torchrun_was_started_with(tmp_path):
    assert has_set_threads({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, tmp_path, 7)


@pytest.fixture
def alone(monkeypatch):
    for name in OF_TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    yield
    distributed.shutdown()


def test_a_script_without_torchrun_is_a_world_of_one(alone):
    before = os.sched_getaffinity(0)
    assert distributed.world() is None
    found = distributed.init()
    assert (found.rank, found.size) == (0, 1)
    assert found.binding.why_cpus == "as it was: a rank that is alone"
    assert os.sched_getaffinity(0) == before == set(found.binding.cpus)
    assert distributed.init() is found is distributed.world()
    distributed.shutdown()
    assert distributed.world() is None


def test_mistakes_are_found_before_anything_is_joined(alone, monkeypatch):
    monkeypatch.setenv("TORCH_CPULLM_COMM", "mpi")
    with pytest.raises(ConfigError, match="TORCH_CPULLM_COMM"):
        distributed.init()
    with pytest.raises(ConfigError, match="timeout_s"):
        distributed.init(timeout_s=0)
    assert distributed.world() is None


class Absent:
    """A store that only this rank has come to."""

    def __init__(self):
        self.held = {}

    def set(self, key, value):
        self.held[key] = value

    def check(self, keys):
        return all(key in self.held for key in keys)


def test_a_rank_that_does_not_come_is_named():
    with pytest.raises(RankError, match=r"all 3 ranks of host 0 within 0.05 s, local rank 0, 2 did not come"):
        _masks(World(1, 3, 1, 3), Absent(), 0.05)


# ------------------------------------------------------------------------------------------------------ real processes

REPORT = """
import json, os, sys
import torch, torch_cpullm
world = torch_cpullm.distributed.init()
assert torch_cpullm.distributed.init() is world
tasks = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
sys.stdout.write(json.dumps({
    "rank": world.rank, "size": world.size, "cpus": sorted(os.sched_getaffinity(0)), "tasks": tasks,
    "threads": torch.get_num_threads(), "why": world.binding.why_threads,
}) + "\\n")
"""


def run_torchrun(script, *options, **variables):
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options, str(script)],
        env={**inherited(), "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return process.returncode, process.stdout, process.stderr


def reports(output):
    return sorted((json.loads(line) for line in output.splitlines()), key=lambda report: report["rank"])


def test_ranks_of_torchrun_divide_the_cores(script):
    status, output, errors = run_torchrun(script(REPORT))
    assert status == 0, errors
    first, second = reports(output)
    assert (first["rank"], second["rank"], first["size"]) == (0, 1, 2)
    if len(os.sched_getaffinity(0)) > 1:
        assert not set(first["cpus"]) & set(second["cpus"])
    for report in (first, second):
        assert all(task == report["cpus"] for task in report["tasks"])
        assert "torchrun's own" in report["why"]


def test_threads_of_the_user_stay(script):
    status, output, errors = run_torchrun(script(REPORT), OMP_NUM_THREADS="1")
    assert status == 0, errors
    assert [report["why"] for report in reports(output)] == ["as OMP_NUM_THREADS"] * 2


def test_beside_a_process_group_of_the_user(script):
    lines = "import torch.distributed as dist\ndist.init_process_group('gloo')\n"
    after = "dist.barrier()\ndist.destroy_process_group()\n"
    status, output, errors = run_torchrun(script(lines + REPORT + after))
    assert status == 0, errors
    assert [report["rank"] for report in reports(output)] == [0, 1]


def test_variables_set_by_hand(script):
    """As with mpirun or Slurm: no torchrun keeps the store, so rank 0 does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(2):
        environment = {**inherited(), **seat(rank, 2, rank, 2), "MASTER_PORT": port}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        waiting = "import torch.distributed as dist\ndist.init_process_group('gloo')\n" + REPORT
        command = [sys.executable, "-c", waiting + "dist.barrier()\ndist.destroy_process_group()\n"]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert [report["rank"] for report in reports("".join(outputs))] == [0, 1]


def test_ctrl_c_while_ranks_are_awaited():
    """The other rank never calls init()."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {**inherited(), **seat(0, 2, 0, 2), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    rank = subprocess.Popen(
        [sys.executable, "-c", "import torch_cpullm\ntorch_cpullm.distributed.init()\n"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    store.wait(["torch_cpullm/0/mask/0/0"], timedelta(minutes=5))
    rank.send_signal(signal.SIGINT)
    _, errors = rank.communicate()
    assert rank.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
