"""Which rank this process is, as torchrun's variables say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch_cpullm.distributed.binding import Binding
from torch_cpullm.distributed.reach import Reach
from torch_cpullm.errors import ConfigError

_REMEDY = "start this script with torchrun --nproc-per-node N or torch-cpullm launch --sockets N"
_SEAT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MEETING = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """All ranks, and which of them this one is.

    Attributes:
        rank: this process's number among all, from 0 on.
        size: how many there are.
        local_rank: its number among those of its host.
        local_size: how many those are.
        host: its host's number.
        hosts: how many hosts there are.
        binding: the CPUs, threads and memory that init() has given it; None before.
        reach: how it reaches the others; None before init(), and for a rank that is alone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    host: int = 0
    hosts: int = 1
    binding: Binding | None = None
    reach: Reach | None = None

    @property
    def group(self) -> int:
        """The number of the ranks' group, as operators take it; 0 for a rank that is alone."""
        return self.reach.group if self.reach else 0

    def __str__(self) -> str:
        """One line for the rank, one for each part of its binding, and one for its way to the others."""
        where = f"local rank {self.local_rank} of {self.local_size} on host {self.host} of {self.hosts}"
        lines = [f"rank {self.rank} of {self.size} ({where})"]
        lines += [str(self.binding)] if self.binding else []
        lines += [f"  messages {self.reach}"] if self.reach else []
        return "\n".join(lines)

    __repr__ = __str__  # what a notebook shows


def read_world(environment: Mapping[str, str]) -> World | None:
    """The world that `environment` describes; None where it has none of torchrun's variables.

    Raises:
        ConfigError: variables are missing or contradict each other.
    """
    if not any(environment.get(name) for name in _SEAT):
        return None
    missing = [name for name in (*_SEAT, *_MEETING) if not environment.get(name)]
    if missing:
        present = ", ".join(f"{name}={environment[name]}" for name in _SEAT if environment.get(name))
        raise ConfigError(f"{', '.join(missing)}: expected beside {present}, found none; {_REMEDY}")
    rank, size, local_rank, local_size = (_number(environment, name) for name in _SEAT)
    _number(environment, "MASTER_PORT")
    # torchrun tells both; who sets variables by hand has as many ranks on each host, in order.
    hosts = _number(environment, "GROUP_WORLD_SIZE", -(-size // max(1, local_size)))
    host = _number(environment, "GROUP_RANK", rank // max(1, local_size))
    _below("RANK", rank, "WORLD_SIZE", size)
    _below("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size)
    _below("GROUP_RANK", host, "GROUP_WORLD_SIZE", hosts)
    # Every host has a rank, and this one's are distinct: what is left of the ranks is at least one for each other host.
    if local_size + hosts - 1 > size or (hosts == 1 and local_size < size):
        raise ConfigError(
            f"LOCAL_WORLD_SIZE: expected {size} ranks on {hosts} host(s), got {local_size} on this one; {_REMEDY}"
        )
    return World(rank, size, local_rank, local_size, host, hosts)


def _number(environment: Mapping[str, str], name: str, otherwise: int = 0) -> int:
    text = environment.get(name)
    if not text:
        return otherwise
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name}: expected a whole number, got {text!r}; {_REMEDY}")
    return int(text)


def _below(name: str, value: int, of: str, count: int) -> None:
    if value >= count:
        raise ConfigError(f"{name}: expected less than {of}={count}, got {value}; {_REMEDY}")
