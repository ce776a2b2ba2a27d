"""Topology, container limits, OpenMP runtimes and info(), on made-up systems."""

from dataclasses import replace

import pytest

import torch_cpullm
from torch_cpullm.machine import detect_machine, memory_limit_bytes, openmp
from torch_cpullm.machine.container import cpu_quota
from torch_cpullm.machine.huge_pages import transparent_huge_pages
from torch_cpullm.machine.info import find_warnings
from torch_cpullm.machine.openmp import loaded_runtimes, runtimes_in_use
from torch_cpullm.machine.topology import Topology, parse_cpu_list, read_topology, write_cpu_list

TWO_NODES = Topology(4, 4, 2, ((0,), (1,), (2,), (3,)), {0: (0, 1), 1: (2, 3)}, (0, 0, 0))


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def system(root, sockets, cores, threads):
    """A sysfs tree of one NUMA node a socket; CPU numbers go around the threads last, as Linux numbers them."""
    per_socket = cores * threads
    for cpu in range(sockets * per_socket):
        socket, core = cpu // cores % sockets, cpu % cores
        write(root / f"cpu/cpu{cpu}/topology/physical_package_id", f"{socket}\n")
        write(root / f"cpu/cpu{cpu}/topology/core_id", f"{core}\n")
        for index, (level, kind, size) in enumerate(
            (("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M"))
        ):
            for name, value in (("level", level), ("type", kind), ("size", size)):
                write(root / f"cpu/cpu{cpu}/cache/index{index}/{name}", value + "\n")
    for socket in range(sockets):
        members = [cpu for cpu in range(sockets * per_socket) if cpu // cores % sockets == socket]
        write(root / f"node/node{socket}/cpulist", ",".join(map(str, members)) + "\n")
    return root, set(range(sockets * per_socket))


@pytest.mark.parametrize("sockets", [1, 2, 4, 8])
@pytest.mark.parametrize("threads", [1, 2])
def test_topology(sockets, threads, tmp_path):
    root, cpus = system(tmp_path, sockets, 4, threads)
    found = read_topology(root, cpus)
    assert (found.logical, found.physical, found.sockets) == (sockets * 4 * threads, sockets * 4, sockets)
    assert [len(node) for node in found.nodes.values()] == [4 * threads] * sockets
    assert found.caches == (48 << 10, 2 << 20, 0)
    assert len(found.cores) == sockets * 4
    assert all(len(core) == threads for core in found.cores)
    assert sorted(cpu for core in found.cores for cpu in core) == sorted(cpus)


def test_affinity_narrows_everything(tmp_path):
    root, _ = system(tmp_path, 2, 4, 1)
    found = read_topology(root, {0, 1})
    assert (found.logical, found.physical, found.sockets, found.nodes) == (2, 2, 1, {0: (0, 1)})
    assert found.cores == ((0,), (1,))
    assert read_topology(root, {5}).nodes == {1: (5,)}


def test_a_silent_system(tmp_path):
    found = read_topology(tmp_path, {0, 1})
    assert (found.logical, found.physical, found.sockets) == (2, None, None)
    assert found.nodes == {0: (0, 1)}
    assert found.cores == ()
    assert found.caches == (0, 0, 0)


@pytest.mark.parametrize(("text", "cpus"), [("0-3,8", (0, 1, 2, 3, 8)), ("5", (5,)), ("", ()), ("0-0\n", (0,))])
def test_cpu_lists(text, cpus):
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(("cpus", "text"), [((8, 0, 1, 2, 3), "0-3,8"), ((5,), "5"), ((), "")])
def test_cpu_lists_are_written_as_they_are_read(cpus, text):
    assert write_cpu_list(cpus) == text
    assert parse_cpu_list(text) == tuple(sorted(cpus))


def test_container_v2(tmp_path):
    write(tmp_path / "cpu.max", "150000 100000\n")
    write(tmp_path / "memory.max", "1000000\n")
    assert cpu_quota(tmp_path) == 1.5
    assert memory_limit_bytes(tmp_path) == 1_000_000
    write(tmp_path / "cpu.max", "max 100000\n")
    write(tmp_path / "memory.max", "max\n")
    assert cpu_quota(tmp_path) is None
    assert memory_limit_bytes(tmp_path) == memory_limit_bytes(tmp_path / "none")


def test_container_v1(tmp_path):
    write(tmp_path / "cpu/cpu.cfs_quota_us", "200000")
    write(tmp_path / "cpu/cpu.cfs_period_us", "100000")
    write(tmp_path / "memory/memory.limit_in_bytes", "5000000")
    assert cpu_quota(tmp_path) == 2.0
    assert memory_limit_bytes(tmp_path) == 5_000_000
    write(tmp_path / "cpu/cpu.cfs_quota_us", "-1")
    write(tmp_path / "memory/memory.limit_in_bytes", str(2**63 - 4096))
    assert cpu_quota(tmp_path) is None
    assert memory_limit_bytes(tmp_path) > 5_000_000


def test_no_container(tmp_path):
    assert cpu_quota(tmp_path) is None
    assert memory_limit_bytes(tmp_path) > 0


def test_openmp_runtimes(tmp_path):
    lines = [
        "7f00-7f01 r-xp 0 08:01 1 /usr/lib/libgomp.so.1.0.0",
        "7f01-7f02 r--p 0 08:01 1 /usr/lib/libgomp.so.1.0.0",
        "7f02-7f03 r-xp 0 08:01 2 /opt/intel/libiomp5.so",
        "7f03-7f04 rw-p 0 00:00 0 ",
        "7f04-7f05 r-xp 0 08:01 3 /usr/lib/libcompress.so",
    ]
    write(tmp_path / "maps", "\n".join(lines))
    assert loaded_runtimes(tmp_path / "maps") == ("/usr/lib/libgomp.so.1.0.0", "/opt/intel/libiomp5.so")
    assert loaded_runtimes(tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("address", "in_use"),
    [
        (0x7F0280, ["libiomp5.so"]),  # preloaded, it answers for libgomp as well
        (0x7F0080, ["libgomp.so.1", "libiomp5.so"]),  # loaded later, it runs its own callers' regions
        (0, ["libgomp.so.1", "libiomp5.so"]),
    ],
)
def test_a_preloaded_runtime_answers_for_the_others(address, in_use, tmp_path, monkeypatch):
    lines = [
        "7f0000-7f0100 r-xp 0 08:01 1 /usr/lib/libgomp.so.1",
        "7f0200-7f0300 r-xp 0 08:01 2 /opt/intel/libiomp5.so",
        "7f0300-7f0400 rw-p 0 00:00 0 ",
    ]
    write(tmp_path / "maps", "\n".join(lines))
    monkeypatch.setattr(openmp, "_address", lambda _: address)
    assert [path.rsplit("/", 1)[-1] for path in runtimes_in_use(tmp_path / "maps")] == in_use


def test_this_process_uses_one_openmp_runtime():
    assert len(runtimes_in_use()) == 1


@pytest.mark.parametrize(("text", "state"), [("always [madvise] never", "madvise"), ("[never]", "never"), ("", None)])
def test_huge_pages(text, state, tmp_path):
    write(tmp_path / "enabled", text)
    assert transparent_huge_pages(tmp_path / "enabled") == state
    assert transparent_huge_pages(tmp_path / "none") is None


@pytest.fixture
def quiet():
    """A machine with nothing to warn about."""
    machine = detect_machine()
    topology = replace(machine.topology, physical=4, logical=4, nodes={0: (0, 1, 2, 3)})
    return replace(
        machine,
        topology=topology,
        quota=None,
        openmp=("/lib/libgomp.so.1",),
        huge_pages="madvise",
        isa="avx2",
        features=("avx2", "fma"),
    )


def test_no_warnings(quiet):
    assert find_warnings(quiet, 4, None) == ()


@pytest.mark.parametrize(
    ("changes", "threads", "forced", "words"),
    [
        ({}, 8, None, "8 threads on 4 cores.*set_num_threads\\(4\\)"),
        ({"quota": 1.5}, 2, None, "grants 1.5 CPUs.*set_num_threads\\(1\\)"),
        ({"openmp": ("/lib/libgomp.so.1", "/x/libiomp5.so")}, 4, None, "2 OpenMP runtimes"),
        ({"huge_pages": "never"}, 4, None, "no huge pages"),
        ({"topology": TWO_NODES}, 4, None, "2 NUMA nodes: stay on one, python -m torch_cpullm.cli launch"),
        ({"isa": "scalar"}, 4, "scalar", "TORCH_CPULLM_ISA=scalar"),
    ],
)
def test_warnings(changes, threads, forced, words, quiet):
    (warning,) = find_warnings(replace(quiet, **changes), threads, forced)
    import re

    assert re.search(words, warning)


def test_info_prints_the_facts():
    text = str(torch_cpullm.info())
    for word in ("CPU", "ISA level", "caches", "NUMA", "threads", "OpenMP", "torch 2.13", "transformers 5", "omp"):
        assert word in text
