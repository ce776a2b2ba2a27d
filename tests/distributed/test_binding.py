"""Where ranks run: decided from made-up sysfs trees; given to a real process."""

import os
import subprocess
import sys

import pytest
import torch

from torch_cpullm.distributed import binding as binding_module
from torch_cpullm.distributed.binding import Binding, Found, bind, choose_binding
from torch_cpullm.machine.settings import Host
from torch_cpullm.machine.topology import parse_cpu_list, read_topology


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def system(root, nodes, cores=4, threads=1, memory_only=0, offline=()):
    """A sysfs tree; node n has cores n * cores and up, second hardware threads are numbered after all first ones."""
    count = nodes * cores
    online = [cpu for cpu in range(count * threads) if cpu not in offline]
    for cpu in online:  # a CPU that is offline has no topology
        write(root / f"cpu/cpu{cpu}/topology/physical_package_id", f"{cpu % count // cores}\n")
        write(root / f"cpu/cpu{cpu}/topology/core_id", f"{cpu % cores}\n")
    for node in range(nodes + memory_only):
        members = [cpu for cpu in online if cpu % count // cores == node]
        write(root / f"node/node{node}/cpulist", ",".join(map(str, members)) + "\n")
    return root, set(online)


def found(tree, ranks, *, mask=None, masks=None, torchruns=False, policy=False, environment=None, quota=None):
    root, online = tree
    seen = set(parse_cpu_list(mask)) if mask else online
    host = Host(topology=read_topology(root, seen), quota=quota, environment=environment or {})
    everyones = masks or (tuple(sorted(seen)),) * ranks
    return Found(host, torchruns, everyones, threads=3, has_memory_policy=policy)


def bindings(tree, ranks, **more):
    return [choose_binding(found(tree, ranks, **more), rank) for rank in range(ranks)]


@pytest.mark.parametrize("smt", [1, 2])
@pytest.mark.parametrize(
    ("nodes", "ranks", "nodes_of_ranks"),
    [
        (1, 1, [(0,)]),
        (1, 2, [(0,), (0,)]),
        (2, 1, [(0, 1)]),
        (2, 2, [(0,), (1,)]),
        (2, 4, [(0,), (0,), (1,), (1,)]),
        (4, 2, [(0, 1), (2, 3)]),
        (4, 4, [(0,), (1,), (2,), (3,)]),
        (4, 8, [(0,), (0,), (1,), (1,), (2,), (2,), (3,), (3,)]),
        (8, 2, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (8, 8, [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,)]),
    ],
)
def test_ranks_take_nodes_and_parts_of_nodes(nodes, ranks, nodes_of_ranks, smt, tmp_path):
    got = bindings(system(tmp_path, nodes, cores=4, threads=smt), ranks)
    assert [one.nodes for one in got] == nodes_of_ranks
    cpus = [cpu for one in got for cpu in one.cpus]
    assert sorted(cpus) == list(range(nodes * 4))  # every core by one hardware thread, none twice
    assert {one.threads for one in got} == {nodes * 4 // ranks}
    assert all(one.threads == len(one.cpus) for one in got)
    assert [one.memory for one in got] == nodes_of_ranks
    assert not any("uneven" in one.why_cpus for one in got)


def test_eight_cores_of_one_node(tmp_path):
    first, second = bindings(system(tmp_path, 1, cores=8, threads=2), 2)
    assert (first.cpus, second.cpus) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert second.why_cpus == "part 2 of 2 of node 0, one hardware thread of each core"
    assert str(second).splitlines()[2] == "  memory   node 0: while it has room"


def test_memory_of_several_nodes_is_taken_by_turns(tmp_path):
    (first, _) = bindings(system(tmp_path, 4), 2)
    assert first.why_cpus == "nodes 0-1 of 4, one hardware thread of each core"
    assert first.why_memory.startswith("by turns")


def test_what_does_not_divide_evenly_says_so(tmp_path):
    three_on_four = bindings(system(tmp_path, 4), 3)
    assert [one.nodes for one in three_on_four] == [(0,), (1,), (2, 3)]
    assert all("uneven, 4 to 8 cores a rank" in one.why_cpus for one in three_on_four)


def test_three_ranks_on_two_nodes(tmp_path):
    got = bindings(system(tmp_path, 2), 3)
    assert [one.cpus for one in got] == [(0, 1), (2, 3), (4, 5, 6, 7)]
    assert all("uneven, 2 to 4 cores a rank" in one.why_cpus for one in got)


def test_more_ranks_than_cores_share_them(tmp_path):
    got = bindings(system(tmp_path, 2, cores=1), 4)
    assert [one.cpus for one in got] == [(0,), (0,), (1,), (1,)]
    assert [one.threads for one in got] == [1] * 4
    assert all("2 ranks on 1 core(s) wait for each other" in one.why_cpus for one in got)
    assert [one.cpus for one in bindings(system(tmp_path / "b", 1, cores=2), 5)] == [(0,), (0,), (0,), (1,), (1,)]


def test_nodes_of_memory_alone_are_left_out(tmp_path):
    got = bindings(system(tmp_path, 2, memory_only=2), 2)
    assert [(one.nodes, one.memory) for one in got] == [((0,), (0,)), ((1,), (1,))]


def test_cpus_that_are_offline(tmp_path):
    got = bindings(system(tmp_path, 2, cores=4, threads=2, offline=(0, 5, 13)), 2)
    assert [one.cpus for one in got] == [(1, 2, 3, 8), (4, 6, 7)]  # 8 is the other thread of core 0; core 5 is gone


def test_a_cpuset_that_cuts_nodes(tmp_path):
    tree = system(tmp_path, 4)
    got = bindings(tree, 2, mask="2-9")
    assert [(one.nodes, one.cpus) for one in got] == [((0,), (2, 3)), ((1, 2), (4, 5, 6, 7, 8, 9))]
    assert "uneven, 2 to 6 cores" in got[0].why_cpus
    assert [one.cpus for one in bindings(tree, 2, mask="5-6")] == [(5,), (6,)]


def test_a_silent_system(tmp_path):
    got = bindings((tmp_path, {0, 1, 2, 3}), 2)
    assert [one.cpus for one in got] == [(0, 1), (2, 3)]
    assert "does not tell cores" in got[0].why_cpus


@pytest.mark.parametrize(("quota", "threads"), [(None, 4), (8.0, 4), (5.0, 2), (1.0, 1)])
def test_a_quota_is_for_all_ranks_together(quota, threads, tmp_path):
    got = bindings(system(tmp_path, 2), 2, quota=quota)
    assert [one.threads for one in got] == [threads] * 2
    assert [len(one.cpus) for one in got] == [4, 4]


def test_ranks_that_were_bound_one_by_one_stay(tmp_path):
    tree = system(tmp_path, 2, threads=2)
    masks = (tuple(parse_cpu_list("0-3,8-11")), tuple(parse_cpu_list("4-7,12-15")))
    second = choose_binding(found(tree, 2, mask="4-7,12-15", masks=masks), 1)
    assert second.cpus == masks[1]
    assert (second.nodes, second.threads) == ((1,), 4)
    assert "bound already" in second.why_cpus


def test_a_mask_for_all_ranks_is_divided(tmp_path):
    """As after `taskset torchrun`, and in a container."""
    got = bindings(system(tmp_path, 2, threads=2), 2, mask="0-3")
    assert [one.cpus for one in got] == [(0, 1), (2, 3)]


@pytest.mark.parametrize("variable", ["KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY"])
def test_a_runtime_that_binds_threads_is_left_alone(variable, tmp_path):
    environment = {variable: "compact", "OMP_NUM_THREADS": "2"}
    got = choose_binding(found(system(tmp_path, 2), 2, environment=environment, masks=((0,), (4,))), 1)
    assert (got.cpus, got.threads, got.memory) == ((4,), 3, ())
    assert got.why_cpus == got.why_threads == f"{variable} is set, which binds threads"


def test_a_runtime_that_binds_all_ranks_to_the_same_cpus(tmp_path):
    environment = {"OMP_PROC_BIND": "close"}
    got = choose_binding(found(system(tmp_path, 2), 2, environment=environment, masks=((0,), (0,))), 1)
    assert got.cpus == (0,)
    assert got.why_cpus.endswith(
        "ranks share CPUs and wait for each other: unset OMP_PROC_BIND, or start with launch --bind"
    )


def test_threads_of_the_user_and_of_torchrun(tmp_path):
    tree, environment = system(tmp_path, 2), {"OMP_NUM_THREADS": "1"}
    users, torchruns = (
        choose_binding(found(tree, 2, environment=environment, torchruns=torchruns), 0) for torchruns in (False, True)
    )
    assert (users.threads, users.why_threads) == (1, "as OMP_NUM_THREADS")
    assert (torchruns.threads, torchruns.why_threads) == (4, "one a CPU; the OMP_NUM_THREADS=1 is torchrun's own")
    assert users.cpus == torchruns.cpus == (0, 1, 2, 3)


def test_a_memory_policy_of_the_user_stays(tmp_path):
    got = choose_binding(found(system(tmp_path, 2), 2, policy=True), 0)
    assert (got.memory, got.why_memory) == ((), "its policy is set already")
    assert got.cpus == (0, 1, 2, 3)


# -------------------------------------------------------------------------------------------------------- this machine

APPLIED = """
import os, threading
import torch
from torch_cpullm.distributed.binding import Binding, bind
from torch_cpullm.machine.memory_policy import has_memory_policy
torch.ones(1 << 20).add_(1)  # threads of OpenMP
asleep = threading.Event()
threading.Thread(target=asleep.wait, daemon=True).start()
cpu = max(os.sched_getaffinity(0))
got = bind(Binding((cpu,), (0,), 1, (0,), "a", "b", "c"))
tasks = [os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
assert len(tasks) > 1 and all(task == {cpu} for task in tasks), tasks
assert torch.get_num_threads() == 1
assert (got.memory == (0,)) == has_memory_policy(), got
assert got.why_memory == "c" or "refuses" in got.why_memory, got
"""


def test_all_threads_of_a_process_move():
    subprocess.run(
        [sys.executable, "-c", APPLIED], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True
    )


def kept(**changes):
    values = {"cpus": tuple(sorted(os.sched_getaffinity(0))), "nodes": (0,), "threads": torch.get_num_threads()}
    return Binding(**{**values, "memory": (), "why_cpus": "a", "why_threads": "b", "why_memory": "c", **changes})


def test_a_binding_that_is_there_already_touches_no_thread(monkeypatch):
    """An OpenMP runtime may have bound them one by one."""
    monkeypatch.setattr(binding_module, "_move", lambda _: pytest.fail("moved"))
    assert bind(kept()) == kept()


def test_what_the_system_refuses_is_no_error(monkeypatch):
    def refuse(*arguments):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(binding_module, "_move", refuse)
    monkeypatch.setattr(binding_module, "put_memory_on", refuse)
    before = tuple(sorted(os.sched_getaffinity(0)))
    got = bind(kept(cpus=(4711,), memory=(0,)))
    assert (got.cpus, got.why_cpus) == (before, "the system refuses others (Operation not permitted)")
    assert (got.memory, got.why_memory) == ((), "the system refuses a policy (Operation not permitted)")
