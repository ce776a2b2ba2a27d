"""Which CPUs a process gets, and how many threads."""

from __future__ import annotations

from dataclasses import dataclass

from torch_cpullm.errors import ConfigError
from torch_cpullm.machine.settings import Host, Request
from torch_cpullm.machine.topology import Topology, narrowed, write_cpu_list


@dataclass(frozen=True)
class Share:
    """What one of several ranks gets of a host: CPUs, the NUMA nodes they are of, and the reason."""

    cpus: tuple[int, ...]
    nodes: tuple[int, ...]
    why: str


def share_cpus(topology: Topology, rank: int, ranks: int, smt: bool = False) -> Share:
    """The CPUs of rank `rank` of `ranks` that share a host.

    Nodes stay whole as long as there are enough of them; else the ranks on a node divide its cores:

        2 ranks on 4 nodes    | node 0  node 1 | node 2  node 3 |
        4 ranks on 2 nodes    | half 0 | half 0 | half 1 | half 1 |
        3 ranks on 4 nodes    | node 0 | node 1 | node 2  node 3 |     uneven, and the reason says so

    A rank across two halves of two nodes would even that out, and read half of its weights over the link between them.
    All ranks compute equal parts of a model, so the slowest one sets the pace.

    Args:
        topology: of the CPUs that all ranks together may use.
        rank: this one's number on the host.
        ranks: how many are on the host.
        smt: all hardware threads of a core, not the first alone.
    """
    every = [_share(topology, number, ranks, smt) for number in range(ranks)]
    nodes, cores, why = every[rank]
    counts = sorted(len(found) for _, found, _ in every)
    if counts[0] < counts[-1]:
        why += f"; uneven, {counts[0]} to {counts[-1]} cores a rank: the fewest set the pace of all"
    return Share(tuple(sorted(cpu for core in cores for cpu in core)), nodes, why)


def _share(topology: Topology, rank: int, ranks: int, smt: bool) -> tuple[tuple[int, ...], list[tuple[int, ...]], str]:
    """Nodes, cores as the CPUs that are taken of each, and the reason."""
    numbers = tuple(topology.nodes)
    if ranks <= len(numbers):
        nodes = numbers[rank * len(numbers) // ranks : (rank + 1) * len(numbers) // ranks]
        cores = [core for node in nodes for core in _cores(topology, topology.nodes[node], smt)]
        return nodes, cores, f"{_named(nodes)} of {len(numbers)}, {_taken(topology, smt)}"
    node = numbers[rank * len(numbers) // ranks]
    here = [other for other in range(ranks) if other * len(numbers) // ranks == numbers.index(node)]
    place, count = here.index(rank), len(here)
    cores = _cores(topology, topology.nodes[node], smt)
    first, end = place * len(cores) // count, (place + 1) * len(cores) // count
    why = f"part {place + 1} of {count} of node {node}, {_taken(topology, smt)}"
    if count > len(cores):
        return (node,), cores[first : first + 1], f"{why}; {count} ranks on {len(cores)} core(s) wait for each other"
    return (node,), cores[first:end], why


def _named(nodes: tuple[int, ...]) -> str:
    return f"node {nodes[0]}" if len(nodes) == 1 else f"nodes {write_cpu_list(nodes)}"


def _taken(topology: Topology, smt: bool) -> str:
    if not topology.cores:
        return "the system does not tell cores from hardware threads"
    return "all hardware threads" if smt else "one hardware thread of each core"


def _cores(topology: Topology, members: tuple[int, ...], smt: bool) -> list[tuple[int, ...]]:
    """The cores of a node, in order of their first CPU, each with the CPUs to take of it."""
    shares = [tuple(sorted(set(core) & set(members))) for core in topology.cores] or [(cpu,) for cpu in members]
    return sorted(share if smt else share[:1] for share in shares if share)


def choose_cpus(request: Request, topology: Topology) -> tuple[tuple[int, ...], str]:
    """Return the CPUs and the reason.

    One node, because memory of another one is farther; one hardware thread of a core, because the kernels leave a
    second one nothing to do: the core's multipliers and its share of bandwidth are busy.

    Raises:
        ConfigError: CPUs or a node that this process cannot have, or two options that contradict each other.
    """
    if request.ranks > 1:
        return _of_rank(request, topology)
    if request.cpus is not None:
        return _explicit_cpus(request, topology), "as asked"
    number, members = _members(request, topology)
    where = f"node {number} of {len(topology.nodes)}" if number is not None else f"all {len(topology.nodes)} nodes"
    cores = _cores(topology, members, request.smt)
    cpus = tuple(sorted(cpu for core in cores for cpu in core))
    return cpus, f"{_taken(topology, request.smt)}, {where}"


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
    if host.quota is not None and host.quota / request.ranks < len(cpus):
        among = f" to {request.ranks} ranks" if request.ranks > 1 else ""
        return max(1, int(host.quota / request.ranks)), f"the container grants {host.quota:g} CPUs{among}"
    return len(cpus), "one a CPU"


def _of_rank(request: Request, topology: Topology) -> tuple[tuple[int, ...], str]:
    """The rank's share of what a launch of one process would have to choose from."""
    if request.cpus is not None:
        chosen = narrowed(topology, _explicit_cpus(request, topology))
        share = share_cpus(chosen, request.rank, request.ranks, smt=True)  # CPUs asked for are all taken
        return share.cpus, f"{share.why}, of what was asked for"
    members = _members(request, topology)[1] if request.node is not None else _all(topology)
    share = share_cpus(narrowed(topology, members), request.rank, request.ranks, request.smt)
    return share.cpus, share.why


def _all(topology: Topology) -> tuple[int, ...]:
    return tuple(sorted(cpu for members in topology.nodes.values() for cpu in members))


def _explicit_cpus(request: Request, topology: Topology) -> tuple[int, ...]:
    others = {"--node": request.node is not None, "--all-nodes": request.all_nodes, "--smt": request.smt}
    if any(others.values()):
        names = " and ".join(name for name, given in others.items() if given)
        raise ConfigError(f"cpus: expected --cpus or {names}, got both; leave one out")
    allowed = _all(topology)
    chosen = tuple(sorted(set(request.cpus or ())))
    if not chosen or not set(allowed).issuperset(chosen):
        missing = write_cpu_list(tuple(cpu for cpu in chosen if cpu not in allowed))
        raise ConfigError(
            f"cpus: expected some of {write_cpu_list(allowed)}, which this process may use, "
            f"got {missing or 'none'}; lscpu --extended lists the machine's"
        )
    return chosen


def _members(request: Request, topology: Topology) -> tuple[int | None, tuple[int, ...]]:
    """The node's number (None: all of them) and its CPUs."""
    if request.all_nodes:
        if request.node is not None:
            raise ConfigError(f"node: expected --node or --all-nodes, got both (--node {request.node}); leave one out")
        return None, _all(topology)
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
