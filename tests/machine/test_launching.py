"""What a process should start with, decided for made-up machines."""

from dataclasses import replace
from pathlib import Path

import pytest

from torch_cpullm.errors import ConfigError
from torch_cpullm.machine.launching import settle, this_host
from torch_cpullm.machine.preloading import find_libraries
from torch_cpullm.machine.settings import Host, Request
from torch_cpullm.machine.topology import Topology

INSTALLED = {"intel": "/opt/lib/libiomp5.so", "jemalloc": "/usr/lib/libjemalloc.so.2"}


def topology(nodes: int = 2, cores: int = 4, smt: int = 2) -> Topology:
    """Node n has cores n * cores and up; second hardware threads are numbered after all first ones, as Linux does."""
    count = nodes * cores
    threads = tuple(tuple(core + count * thread for thread in range(smt)) for core in range(count))
    members = {
        node: tuple(sorted(cpu for core in threads[node * cores : (node + 1) * cores] for cpu in core))
        for node in range(nodes)
    }
    return Topology(count * smt, count, nodes, threads, members, (0, 0, 0))


def host(*, machine=None, environment=None, **more):
    defaults = {"huge_pages": "madvise", "glibc": (2, 36), "libraries": INSTALLED}
    return Host(topology=machine or topology(), environment=environment or {}, **{**defaults, **more})


def variables(settings, *, kept=False):
    return {variable.name: variable.value for variable in settings.variables if variable.kept == kept}


@pytest.mark.parametrize(
    ("request_", "cpus"),
    [
        (Request(), (0, 1, 2, 3)),
        (Request(node=1), (4, 5, 6, 7)),
        (Request(smt=True), (0, 1, 2, 3, 8, 9, 10, 11)),
        (Request(all_nodes=True), tuple(range(8))),
        (Request(all_nodes=True, smt=True), tuple(range(16))),
        (Request(cpus=(15, 2, 2)), (2, 15)),
    ],
)
def test_cpus_and_as_many_threads(request_, cpus):
    settings = settle(request_, host())
    assert settings.cpus == cpus
    assert settings.threads == len(cpus)
    assert variables(settings)["OMP_NUM_THREADS"] == variables(settings)["MKL_NUM_THREADS"] == str(len(cpus))


def test_a_narrow_mask_may_leave_second_hardware_threads_and_one_node():
    machine = Topology(3, 2, 1, ((9,), (2, 10)), {1: (2, 9, 10)}, (0, 0, 0))
    settings = settle(Request(), host(machine=machine))
    assert settings.cpus == (2, 9)
    assert "node 1 of 1" in settings.why_cpus


def test_the_node_with_most_cpus_is_the_default():
    machine = Topology(3, 3, 2, ((0,), (4,), (5,)), {0: (0,), 1: (4, 5)}, (0, 0, 0))
    assert settle(Request(), host(machine=machine)).cpus == (4, 5)


def test_a_system_that_does_not_tell_cores():
    settings = settle(Request(), host(machine=Topology(3, None, None, (), {0: (0, 1, 5)}, (0, 0, 0))))
    assert settings.cpus == (0, 1, 5)
    assert "does not tell" in settings.why_cpus


@pytest.mark.parametrize(("quota", "threads"), [(None, 4), (2.5, 2), (0.5, 1), (64.0, 4)])
def test_a_quota_takes_threads_and_leaves_cpus(quota, threads):
    settings = settle(Request(), host(quota=quota))
    assert (settings.threads, settings.cpus) == (threads, (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("request_", "cpus"),
    [
        (Request(), [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (Request(smt=True), [(0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)]),
        (Request(node=1), [(4, 5), (6, 7)]),
        (Request(cpus=(0, 1, 8, 9)), [(0, 8), (1, 9)]),  # both threads of a core go to one rank
        (Request(threads=3), [(0, 1, 2, 3), (4, 5, 6, 7)]),
    ],
)
def test_ranks_divide_what_one_process_would_choose_from(request_, cpus):
    ranks = [settle(replace(request_, rank=rank, ranks=2), host()) for rank in range(2)]
    assert [settings.cpus for settings in ranks] == cpus
    assert [settings.threads for settings in ranks] == [request_.threads or len(cpus[0])] * 2


@pytest.mark.parametrize(("quota", "threads"), [(6.0, 3), (1.0, 1), (64.0, 4)])
def test_ranks_divide_a_quota(quota, threads):
    ranks = [settle(Request(rank=rank, ranks=2), host(quota=quota)) for rank in range(2)]
    assert [settings.threads for settings in ranks] == [threads] * 2


def test_threads_leave_cpus():
    settings = settle(Request(threads=3), host(quota=2.0))
    assert (settings.threads, settings.cpus) == (3, (0, 1, 2, 3))


@pytest.mark.parametrize(("text", "threads"), [("3", 3), ("2,1", 2), ("many", 4)])
def test_variables_of_the_user_stay(text, threads):
    environment = {"OMP_NUM_THREADS": text, "KMP_AFFINITY": "none"}
    settings = settle(Request(), host(environment=environment))
    assert variables(settings, kept=True) == environment
    assert settings.threads == threads
    assert variables(settings)["MKL_NUM_THREADS"] == str(threads)


def test_an_explicit_option_overrides_variables():
    environment = {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"}
    settings = settle(Request(threads=2, huge_pages=True), host(environment=environment))
    assert variables(settings) == {
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }


def test_too_many_threads_of_the_user_are_kept_with_a_note():
    (note,) = settle(Request(), host(environment={"OMP_NUM_THREADS": "99"})).notes
    assert "99 threads on 4 CPUs" in note


@pytest.mark.parametrize(
    ("openmp", "expected"),
    [
        ("gnu", {"OMP_PLACES": "{0},{1},{2},{3}", "OMP_PROC_BIND": "close"}),
        ("intel", {"KMP_AFFINITY": "granularity=fine,explicit,proclist=[0,1,2,3]"}),
    ],
)
def test_bind(openmp, expected):
    given = variables(settle(Request(bind=True, openmp=openmp), host()))
    bound = {name: value for name, value in given.items() if name.startswith(("OMP_P", "GOMP_", "KMP_A"))}
    assert bound == expected


@pytest.mark.parametrize(
    ("openmp", "shared", "expected"),
    [
        ("gnu", False, {}),
        ("gnu", True, {"OMP_WAIT_POLICY": "passive"}),
        ("intel", False, {"KMP_BLOCKTIME": "1"}),
        ("intel", True, {"KMP_BLOCKTIME": "0"}),
    ],
)
def test_waiting(openmp, shared, expected):
    given = variables(settle(Request(openmp=openmp, shared=shared), host()))
    assert {name: value for name, value in given.items() if name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")} == expected


def test_a_wait_policy_of_the_user_is_not_undone_by_blocktime():
    settings = settle(Request(openmp="intel"), host(environment={"OMP_WAIT_POLICY": "active"}))
    assert "KMP_BLOCKTIME" not in variables(settings)
    assert variables(settings, kept=True) == {"OMP_WAIT_POLICY": "active"}


def test_preload_stands_before_what_is_there():
    settings = settle(Request(openmp="intel", malloc="jemalloc"), host(environment={"LD_PRELOAD": "/a.so /b.so"}))
    given = variables(settings)
    assert given["LD_PRELOAD"] == "/opt/lib/libiomp5.so:/usr/lib/libjemalloc.so.2:/a.so /b.so"
    assert "GLIBC_TUNABLES" not in given


def test_auto_takes_nothing_that_is_only_installed():
    assert "LD_PRELOAD" not in variables(settle(Request(), host()))


@pytest.mark.parametrize("openmp", ["auto", "intel"])
def test_what_is_preloaded_already_is_not_preloaded_twice(openmp):
    environment = {"LD_PRELOAD": "/mine/libiomp5.so"}
    settings = settle(Request(openmp=openmp), host(environment=environment))
    assert variables(settings, kept=True) == environment
    assert variables(settings)["KMP_BLOCKTIME"] == "1"


@pytest.mark.parametrize(
    ("state", "choice", "given"),
    [
        ("madvise", None, True),
        ("always", None, False),
        ("never", None, False),
        (None, None, False),
        ("always", True, True),
        ("madvise", False, False),
    ],
)
def test_huge_pages(state, choice, given):
    settings = settle(Request(huge_pages=choice), host(huge_pages=state))
    assert variables(settings).get("GLIBC_TUNABLES") == ("glibc.malloc.hugetlb=1" if given else None)
    assert bool(settings.notes) == (state == "never")


@pytest.mark.parametrize(
    ("choice", "present", "kept", "value"),
    [
        (None, "glibc.malloc.arena_max=1", False, "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"),
        (None, "glibc.malloc.hugetlb=2", True, "glibc.malloc.hugetlb=2"),
        (False, "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1", False, "glibc.malloc.arena_max=1"),
    ],
)
def test_other_tunables_stay(choice, present, kept, value):
    settings = settle(Request(huge_pages=choice), host(environment={"GLIBC_TUNABLES": present}))
    assert variables(settings, kept=kept)["GLIBC_TUNABLES"] == value


@pytest.mark.parametrize("glibc", [(2, 34), None])
def test_an_old_library_has_no_huge_pages(glibc):
    assert "GLIBC_TUNABLES" not in variables(settle(Request(), host(glibc=glibc)))


@pytest.mark.parametrize(
    ("request_", "changes", "words"),
    [
        (Request(threads=5), {}, r"threads: expected 1 to 4, for CPUs 0-3, got 5; leave"),
        (Request(threads=0), {}, r"threads: expected 1 to 4, .* got 0"),
        (Request(cpus=(0, 99)), {}, r"cpus: expected some of 0-15, .* got 99; lscpu"),
        (Request(cpus=()), {}, r"cpus: .* got none"),
        (Request(cpus=(0,), node=1, smt=True), {}, r"cpus: expected --cpus or --node and --smt, got both"),
        (Request(node=2), {}, r"node: expected one of 0, 1, .* got 2; leave"),
        (Request(node=0, all_nodes=True), {}, r"node: expected --node or --all-nodes, got both"),
        (Request(openmp="intel"), {"libraries": {}}, r"openmp: expected libiomp5 .* pip install intel-openmp"),
        (Request(malloc="tcmalloc"), {}, r"malloc: expected libtcmalloc .* libtcmalloc-minimal4"),
        (Request(malloc="jemalloc"), {"libraries": {"jemalloc": "/a b/libjemalloc.so"}}, r"malloc: .* '/a b/"),
        (
            Request(openmp="gnu"),
            {"environment": {"LD_PRELOAD": "/x/libiomp5.so"}},
            r"openmp: expected no libiomp5 in LD_",
        ),
        (Request(malloc="system"), {"environment": {"LD_PRELOAD": "libtcmalloc_minimal.so.4"}}, r"malloc: expected no"),
        (
            Request(openmp="intel"),
            {"environment": {"OMP_PLACES": "cores"}},
            r"openmp: expected OMP_PLACES not .* unset",
        ),
        (Request(huge_pages=True), {"glibc": (2, 31)}, r"huge_pages: expected glibc 2\.35 or newer, found 2\.31"),
        (Request(huge_pages=True, malloc="jemalloc"), {}, r"huge_pages: expected the system's malloc, got jemalloc"),
    ],
)
def test_mistakes_are_named(request_, changes, words):
    with pytest.raises(ConfigError, match=f"^{words}"):
        settle(request_, host(**changes))


def test_unbound_places_are_no_mistake():
    environment = {"OMP_PROC_BIND": "false", "OMP_PLACES": "cores"}
    settings = settle(Request(openmp="intel"), host(environment=environment))
    assert variables(settings, kept=True) == environment


def test_libraries_are_found_by_name(tmp_path: Path):
    for name in ("libtcmalloc_and_profiler.so.4", "libtcmalloc_minimal.so.4", "libjemalloc.so.2.txt", "libiomp5.so"):
        (tmp_path / name).touch()
    found = find_libraries([tmp_path / "none", tmp_path])
    assert found["tcmalloc"] == str(tmp_path / "libtcmalloc_minimal.so.4")
    assert found["intel"].endswith("libiomp5.so")  # that of the package, where it is installed
    assert "jemalloc" not in found


def test_this_machine_can_be_settled():
    settings = settle(Request(), this_host({}))
    assert settings.cpus
    assert 1 <= settings.threads <= len(settings.cpus)
