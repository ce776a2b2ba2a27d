"""Which CPUs a process gets, and how many threads."""

from __future__ import annotations

from torch_cpullm.errors import ConfigError
from torch_cpullm.machine.settings import Host, Request
from torch_cpullm.machine.topology import Topology, write_cpu_list


def choose_cpus(request: Request, topology: Topology) -> tuple[tuple[int, ...], str]:
    """Return the CPUs and the reason.

    One node, because memory of another one is farther; one hardware thread of a core, because the kernels leave a
    second one nothing to do: the core's multipliers and its share of bandwidth are busy.

    Raises:
        ConfigError: CPUs or a node that this process cannot have, or two options that contradict each other.
    """
    if request.cpus is not None:
        return _explicit_cpus(request, topology), "as asked"
    number, members = _members(request, topology)
    where = f"node {number} of {len(topology.nodes)}" if number is not None else f"all {len(topology.nodes)} nodes"
    if request.smt:
        return members, f"all hardware threads, {where}"
    if not topology.cores:
        return members, f"the system does not tell cores from hardware threads, {where}"
    shares = [set(core) & set(members) for core in topology.cores]
    first = tuple(sorted(min(share) for share in shares if share))
    return first, f"one hardware thread of each of {len(first)} core(s), {where}"


def choose_threads(request: Request, host: Host, cpus: tuple[int, ...]) -> tuple[int, str]:
    """Return the number of threads and the reason.

    Fewer threads than CPUs leave the CPUs as they are: two processes with four threads each shall not both be on the
    first four cores.

    Raises:
        ConfigError: more threads than CPUs, or none.
    """
    if request.threads is not None:
        if not 1 <= request.threads <= len(cpus):
            raise ConfigError(
                f"threads: expected 1 to {len(cpus)}, for CPUs {write_cpu_list(cpus)}, got {request.threads}; "
                "leave --threads out, or add CPUs with --smt, --all-nodes or --cpus"
            )
        return request.threads, "as asked"
    inherited = host.environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if inherited.isdigit() and int(inherited) > 0:
        return int(inherited), "as OMP_NUM_THREADS"
    if host.quota is not None and host.quota < len(cpus):
        return max(1, int(host.quota)), f"the container grants {host.quota:g} CPUs"
    return len(cpus), "one a CPU"


def _explicit_cpus(request: Request, topology: Topology) -> tuple[int, ...]:
    others = {"--node": request.node is not None, "--all-nodes": request.all_nodes, "--smt": request.smt}
    if any(others.values()):
        names = " and ".join(name for name, given in others.items() if given)
        raise ConfigError(f"cpus: expected --cpus or {names}, got both; leave one out")
    allowed = {cpu for members in topology.nodes.values() for cpu in members}
    chosen = tuple(sorted(set(request.cpus or ())))
    if not chosen or not allowed.issuperset(chosen):
        missing = write_cpu_list(tuple(cpu for cpu in chosen if cpu not in allowed))
        raise ConfigError(
            f"cpus: expected some of {write_cpu_list(tuple(sorted(allowed)))}, which this process may use, "
            f"got {missing or 'none'}; lscpu --extended lists the machine's"
        )
    return chosen


def _members(request: Request, topology: Topology) -> tuple[int | None, tuple[int, ...]]:
    """The node's number (None: all of them) and its CPUs."""
    if request.all_nodes:
        if request.node is not None:
            raise ConfigError(f"node: expected --node or --all-nodes, got both (--node {request.node}); leave one out")
        return None, tuple(sorted(cpu for members in topology.nodes.values() for cpu in members))
    if request.node is None:
        widest = max(topology.nodes, key=lambda number: (len(topology.nodes[number]), -number))
        return widest, topology.nodes[widest]
    if request.node not in topology.nodes:
        known = ", ".join(map(str, topology.nodes))
        raise ConfigError(
            f"node: expected one of {known}, where this process may use CPUs, got {request.node}; leave --node out "
            "for the node with most CPUs"
        )
    return request.node, topology.nodes[request.node]
