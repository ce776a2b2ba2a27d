"""What a process should start with to be fast: its CPUs, threads and environment, each with its reason.

Memory needs no setting: a page lies on the node of the CPU that touches it first, and all CPUs are of one node. With
all nodes it may be spread by `numactl --interleave=all`, which what is launched inherits.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping

from torch_cpullm.errors import ConfigError
from torch_cpullm.machine.container import cpu_quota
from torch_cpullm.machine.huge_pages import REMEDY, transparent_huge_pages
from torch_cpullm.machine.placing import choose_cpus, choose_threads
from torch_cpullm.machine.preloading import choose_preload, find_libraries
from torch_cpullm.machine.settings import Host, Request, Setting, Settings, setting
from torch_cpullm.machine.topology import read_topology

_HUGE = "glibc.malloc.hugetlb"
_HUGE_SINCE = (2, 35)
# What else the runtimes read. Left as it is, but shown, since it decides about speed.
_ALSO_READ = (
    *("OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"),
    *("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_DYNAMIC"),
)


def this_host(environment: Mapping[str, str]) -> Host:
    """Look at this machine, for a process that would have `environment`."""
    name, version = platform.libc_ver()
    major, _, minor = version.partition(".")
    return Host(
        topology=read_topology(),
        quota=cpu_quota(),
        huge_pages=transparent_huge_pages(),
        glibc=(int(major), int(minor)) if name == "glibc" and major.isdigit() and minor.isdigit() else None,
        libraries=find_libraries(),
        environment=environment,
    )


def settle(request: Request, host: Host) -> Settings:
    """Decide everything.

    Raises:
        ConfigError: the request asks for what `host` has not, or contradicts itself.
    """
    cpus, why_cpus = choose_cpus(request, host.topology)
    threads, why_threads = choose_threads(request, host, cpus)
    preload = choose_preload(request, host)
    variables = [
        setting(host, name, str(threads), why_threads, explicit=request.threads is not None)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    ]
    variables += _binding(request, cpus, preload.openmp)
    variables += _waiting(request, host, preload.openmp)
    variables += [preload.variable] if preload.variable else []
    variables += _huge_pages(request, host, preload.malloc)
    settled = {variable.name for variable in variables}
    variables += [
        Setting(name, host.environment[name], "set by you", kept=True)
        for name in _ALSO_READ
        if name not in settled and host.environment.get(name)
    ]
    notes = []
    if threads > len(cpus):
        notes.append(
            f"{threads} threads on {len(cpus)} CPUs wait for each other; unset OMP_NUM_THREADS or use --threads"
        )
    if host.huge_pages == "never" and request.huge_pages is not False:
        notes.append(REMEDY)
    return Settings(cpus, why_cpus, threads, tuple(variables), tuple(notes))


def _binding(request: Request, cpus: tuple[int, ...], openmp: str) -> list[Setting]:
    """Nothing unless asked for.

    Binding binds the main thread too, to one CPU, and what it starts (data loaders, tokenizers) inherits that. The
    affinity mask costs nothing of the kind; on 2 cores decoding was as fast with it as with threads bound.
    """
    if not request.bind:
        return []
    why = "one CPU a thread, the main thread as well"
    if openmp == "intel":
        order = ",".join(map(str, cpus))
        return [Setting("KMP_AFFINITY", f"granularity=fine,explicit,proclist=[{order}]", why)]
    places = ",".join(f"{{{cpu}}}" for cpu in cpus)
    return [Setting("OMP_PLACES", places, why), Setting("OMP_PROC_BIND", "close", why)]


def _waiting(request: Request, host: Host, openmp: str) -> list[Setting]:
    """How a thread waits for the others of its team.

    Alone on its CPUs, a spinning thread goes on at once (OMP_WAIT_POLICY=active adds nothing to that): on 2 cores the
    bundled model decoded 606 tokens per second, and 436 with threads that sleep. Where others compute on the same CPUs
    it spins while the thread it waits for has none: 26 to 67 against 212 to 434 at a load of 5.
    """
    if request.shared:
        name, value = ("KMP_BLOCKTIME", "0") if openmp == "intel" else ("OMP_WAIT_POLICY", "passive")
        return [Setting(name, value, "a waiting thread leaves its CPU to others")]
    if openmp == "intel" and not host.environment.get("OMP_WAIT_POLICY"):
        return [setting(host, "KMP_BLOCKTIME", "1", "a waiting thread spins for 1 ms, not for 200")]
    return []


def _huge_pages(request: Request, host: Host, malloc: str) -> list[Setting]:
    """Where the system leaves it to the program, malloc shall ask: 256 MiB are first written in 48 instead of 97 ms.

    Weights, the KV pool and scratch have huge pages without it (csrc/runtime/huge_pages.h); this is for tensors of
    torch's own.
    """
    tunables = [part for part in host.environment.get("GLIBC_TUNABLES", "").split(":") if part]
    others = [part for part in tunables if not part.startswith(f"{_HUGE}=")]
    if request.huge_pages is None and len(others) < len(tunables):
        return [Setting("GLIBC_TUNABLES", ":".join(tunables), "set by you", kept=True)]
    if request.huge_pages is False:
        return [Setting("GLIBC_TUNABLES", ":".join(others), "no huge pages")] if len(others) < len(tunables) else []
    missing = _missing_for_huge_pages(host, malloc)
    if missing and request.huge_pages:
        raise ConfigError(f"huge_pages: expected {missing}; leave --huge-pages out")
    if missing or (request.huge_pages is None and host.huge_pages != "madvise"):
        return []
    return [Setting("GLIBC_TUNABLES", ":".join([f"{_HUGE}=1", *others]), "huge pages for torch's tensors")]


def _missing_for_huge_pages(host: Host, malloc: str) -> str | None:
    if malloc != "system":
        return f"the system's malloc, got {malloc}"
    if host.glibc is None or host.glibc < _HUGE_SINCE:
        found = ".".join(map(str, host.glibc)) if host.glibc else "another C library"
        return f"glibc {'.'.join(map(str, _HUGE_SINCE))} or newer, found {found}"
    return None
