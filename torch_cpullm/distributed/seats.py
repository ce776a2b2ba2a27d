"""Where each rank of a group runs, as the ranks tell each other: which are neighbours, and which network joins them."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.distributed.distributed_c10d import Store

from torch_cpullm import config
from torch_cpullm.errors import CollectiveError, ConfigError
from torch_cpullm.ops.comm_open import Patience

_SIOCGIFADDR = 0x8915
_ANY_PORT = 9  # nothing is sent: connecting a datagram socket asks which way there is


@dataclass(frozen=True)
class Seat:
    """Where a rank runs.

    Attributes:
        host: its kernel since the last boot.
        processes: its PID namespace: containers of one host may have their own.
        network: its network namespace.
        pid: its process.
        cpus: what it may run on.
    """

    host: str
    processes: str
    network: str
    pid: int
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class Seats:
    """All ranks of a group, and which of them this one is.

    Attributes:
        rank: this one.
        seats: of all ranks, in their order.
        interface: of this rank, to the others: "lo" where all share a network.
    """

    rank: int
    seats: tuple[Seat, ...]
    interface: str

    def neighbours(self) -> list[int]:
        """Ranks of this host, with this one."""
        return [rank for rank, seat in enumerate(self.seats) if seat.host == self.seats[self.rank].host]

    def patience(self, timeout_s: float) -> Patience:
        """How this rank waits for the others."""
        mine = self.seats[self.rank]
        visible = [(seat.host, seat.processes) == (mine.host, mine.processes) for seat in self.seats]
        here = [self.seats[rank] for rank in self.neighbours()]
        return Patience(
            timeout_s=timeout_s,
            pids=[seat.pid if seen else 0 for seat, seen in zip(self.seats, visible, strict=True)],
            crowded=len({cpu for seat in here for cpu in seat.cpus}) < len(here),
        )


def meet(store: Store, rank: int, size: int) -> Seats:
    """Tell the other ranks where this one runs, and learn the same of them.

    Args:
        store: shared by these ranks, and empty of other groups' keys.
        rank: this process, 0 to size - 1.
        size: how many there are.

    Raises:
        ConfigError: the ranks are on several hosts, and no interface leads from this one to the others.
    """
    own = Seat(
        host=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        processes=_namespace("pid"),
        network=_namespace("net"),
        pid=os.getpid(),
        cpus=tuple(sorted(os.sched_getaffinity(0))),
    )
    store.set(f"seat of rank {rank}", json.dumps(asdict(own)))
    told = [json.loads(store.get(f"seat of rank {other}")) for other in range(size)]
    seats = tuple(Seat(**{**seat, "cpus": tuple(seat["cpus"])}) for seat in told)
    return Seats(rank, seats, _interface(store, rank, seats))


def agree(store: Store, rank: int, size: int, what: str, fault: str) -> None:
    """Go on when no rank has a fault; else raise on all of them, with each one's.

    Raises:
        CollectiveError: `what` is impossible; names the ranks and says why.
    """
    store.set(f"fault of rank {rank}", fault)
    told = [store.get(f"fault of rank {other}").decode() for other in range(size)]
    faults = [f"rank {other}: {text}" for other, text in enumerate(told) if text]
    if faults:
        raise CollectiveError(f"no {what} between the ranks: {'; '.join(faults)}")


def _namespace(kind: str) -> str:
    return os.readlink(f"/proc/self/ns/{kind}")  # noqa: PTH115  (it names nothing that exists, but "net:[4026531840]")


def _interface(store: Store, rank: int, seats: tuple[Seat, ...]) -> str:
    """The interface that leads to ranks of other networks; "lo" where there are none.

    Ranks away from rank 0 go by the way to MASTER_ADDR. Those beside it may know that name as 127.0.0.1, so they go by
    the way to where one of the others has come from.
    """
    places = [(seat.host, seat.network) for seat in seats]
    away = [other for other, place in enumerate(places) if place != places[0]]
    if not away:
        return "lo"
    if rank in away:
        master = config.environment().get("MASTER_ADDR", "")
        own = _address_towards(master)
        store.set(f"address of rank {rank}", own)
    else:
        own = _address_towards(store.get(f"address of rank {away[0]}").decode())
    for _, name in socket.if_nameindex():
        if _address_of(name) == own:
            return name
    raise ConfigError(
        "MASTER_ADDR: expected a host that some interface leads to, as ranks are on several hosts, found none that "
        f"has the address {own!r}; set CCL_KVS_IFACE and FI_TCP_IFACE (oneCCL) or GLOO_SOCKET_IFNAME (gloo) to its name"
    )


def _address_towards(host: str) -> str:
    """This host's IPv4 address on the way to another; "" where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, _ANY_PORT))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def _address_of(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", interface.encode()))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
