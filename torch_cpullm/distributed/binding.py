"""The CPUs, the threads and the memory of a rank: decided from what the host is, then given to this process.

A rank reads its part of the weights once for each token. It does so at the speed of its node's memory only from that
node's cores, and only as long as no other rank computes on them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from torch_cpullm.machine.memory_policy import put_memory_on
from torch_cpullm.machine.placing import choose_threads, share_cpus
from torch_cpullm.machine.settings import Host, Request
from torch_cpullm.machine.topology import Topology, write_cpu_list

# What makes an OpenMP runtime bind threads by itself, when it is loaded.
_BINDERS = ("KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY")


@dataclass(frozen=True)
class Binding:
    """Where a rank runs, and why.

    Attributes:
        cpus: its affinity mask.
        nodes: the NUMA nodes these are of.
        threads: threads it computes with.
        memory: the nodes that new pages come from; none: from where they are touched first.
        why_cpus: the reason, as the two that follow.
    """

    cpus: tuple[int, ...]
    nodes: tuple[int, ...]
    threads: int
    memory: tuple[int, ...]
    why_cpus: str
    why_threads: str
    why_memory: str

    def __str__(self) -> str:
        """One line each."""
        memory = f"node {write_cpu_list(self.memory)}" if self.memory else "as it is touched"
        return "\n".join(
            (
                f"  CPUs     {write_cpu_list(self.cpus)}: {self.why_cpus}",
                f"  threads  {self.threads}: {self.why_threads}",
                f"  memory   {memory}: {self.why_memory}",
            )
        )

    __repr__ = __str__


@dataclass(frozen=True)
class Found:
    """A rank as init() finds it.

    Attributes:
        host: what it may run on, and its environment.
        torchruns_threads: whether OMP_NUM_THREADS there is torchrun's and not the user's.
        masks: the affinity masks of all ranks of this host, by their local numbers.
        threads: what torch computes with.
        has_memory_policy: whether numactl or the like has chosen where memory lies.
    """

    host: Host
    torchruns_threads: bool
    masks: Sequence[tuple[int, ...]]
    threads: int
    has_memory_policy: bool


def choose_binding(found: Found, local_rank: int) -> Binding:
    """Decide where a rank shall run. What the user has chosen already stays, and the reason says so.

    Ranks that were bound one by one have different masks. One mask for all is that of the machine, of a container, or
    of a taskset in front of torchrun: it is divided among them.
    """
    topology, ranks, mask = found.host.topology, len(found.masks), found.masks[local_rank]
    binder = next((name for name in _BINDERS if found.host.environment.get(name)), None)
    if binder:
        why = f"{binder} is set, which binds threads"
        if len(set().union(*found.masks)) < sum(map(len, found.masks)):  # as OMP_PROC_BIND does, the same in each rank
            why += f"; ranks share CPUs and wait for each other: unset {binder}, or start with launch --bind"
        return as_it_is(mask, topology, found.threads, why)
    one_by_one = len({frozenset(other) for other in found.masks}) > 1
    share = share_cpus(topology, 0, 1) if one_by_one else share_cpus(topology, local_rank, ranks)
    threads, why_threads = _threads(found, local_rank, share.cpus)
    return Binding(
        cpus=tuple(sorted(mask)) if one_by_one else share.cpus,
        nodes=share.nodes,
        threads=threads,
        memory=() if found.has_memory_policy else share.nodes,
        why_cpus="bound already: ranks of this host have different CPUs" if one_by_one else share.why,
        why_threads=why_threads,
        why_memory=_why_memory(found, share.nodes),
    )


def _threads(found: Found, local_rank: int, cores: tuple[int, ...]) -> tuple[int, str]:
    request = Request(rank=local_rank, ranks=len(found.masks))
    if not found.torchruns_threads:
        return choose_threads(request, found.host, cores)
    others = {name: value for name, value in found.host.environment.items() if name != "OMP_NUM_THREADS"}
    threads, why = choose_threads(request, replace(found.host, environment=others), cores)
    return threads, f"{why}; the OMP_NUM_THREADS=1 is torchrun's own"


def _why_memory(found: Found, nodes: tuple[int, ...]) -> str:
    if found.has_memory_policy:
        return "its policy is set already"
    return "while it has room" if len(nodes) == 1 else "by turns, since threads of all these nodes read it"


def as_it_is(mask: Sequence[int], topology: Topology, threads: int, why: str) -> Binding:
    """The binding that changes nothing."""
    return Binding(tuple(sorted(mask)), tuple(topology.nodes), threads, (), why, why, why)


def bind(binding: Binding) -> Binding:
    """Give it to this process: CPUs to all its threads, memory to this one and those it starts.

    CPUs that this thread has already are not given again, since an OpenMP runtime may have bound the others one by one.

    Returns:
        What came of it: a system that refuses a part is no error, and the reason says so.
    """
    if set(binding.cpus) != os.sched_getaffinity(0):
        try:
            _move(binding.cpus)
        except OSError as error:
            kept, why = tuple(sorted(os.sched_getaffinity(0))), f"the system refuses others ({error.strerror})"
            binding = replace(binding, cpus=kept, why_cpus=why)
    if binding.memory:
        try:
            put_memory_on(binding.memory)
        except OSError as error:
            binding = replace(binding, memory=(), why_memory=f"the system refuses a policy ({error.strerror})")
    torch.set_num_threads(binding.threads)
    return binding


def _move(cpus: Sequence[int]) -> None:
    os.sched_setaffinity(0, cpus)  # first, so that threads started from here on inherit it
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # a thread that has ended meanwhile
            os.sched_setaffinity(int(task.name), cpus)
