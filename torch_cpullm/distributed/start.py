"""init(): a script becomes one of several ranks, on cores and memory of its own; world() says which.

read_world(environment) -> World       torchrun's variables
rendezvous("env://")    -> Store       where ranks meet; init_process_group() may have met there before
exchange of masks       -> Found       ranks of a host learn whether somebody has bound them one by one
choose_binding, bind    -> Binding     distributed/binding.py
open_reach              -> Reach       distributed/reach.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import torch
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from torch_cpullm import config
from torch_cpullm.distributed.binding import Found, as_it_is, bind, choose_binding
from torch_cpullm.distributed.reach import Rank, open_reach
from torch_cpullm.distributed.torchrun import has_set_threads
from torch_cpullm.distributed.world import World, read_world
from torch_cpullm.errors import RankError
from torch_cpullm.machine.launching import this_host
from torch_cpullm.machine.memory_policy import has_memory_policy
from torch_cpullm.machine.topology import parse_cpu_list, read_topology, write_cpu_list
from torch_cpullm.ops.comm import close_group

# Ranks come to init() at different times, and those that died end the job by torchrun's hand.
_JOIN_S = 300.0
_POLL_S = 0.01


_world: World | None = None
_store: Store | None = None  # rank 0 may be the one that keeps it for all
_tried = 0  # worlds so far, joined or not: each has its own names in the store, which forgets none


def init(timeout_s: float | None = None) -> World:
    """Join the ranks that torchrun or `torch-cpullm launch --sockets` has started, and take a part of the host.

    Its threads are put on the cores of its NUMA nodes, and new memory on these nodes; the ways to the other ranks are
    opened and timed. `print(world)` says what was done and why. Call it before the model is loaded, on every rank. A
    second call gives the same world.

    From then on `optimize`, `load` and from_pretrained() leave each rank its part of a model, and generate(), called on
    all ranks with the same arguments, gives the same tokens on all of them.

    A script that was started without torchrun is a world of one rank, and nothing is bound.

    Args:
        timeout_s: how long a collective waits for a rank; None: TORCH_CPULLM_COMM_TIMEOUT, else 5. Joining waits for 5
            minutes at least.

    Returns:
        This rank among the others.

    Raises:
        ConfigError: variables of torchrun are missing or contradict each other, or ours have values that do not exist.
        RankError: another rank of this host, or the store at MASTER_ADDR, did not come.
        CollectiveError: the transport that TORCH_CPULLM_COMM asks for does not open.
    """
    global _world, _store, _tried
    if _world is not None:
        return _world
    timeout_s, transport, environment = config.comm_timeout_s(timeout_s), config.comm_transport(), config.environment()
    world = read_world(environment)
    if world is None:
        why = "as it was: a rank that is alone"
        alone = as_it_is(_own_mask(), read_topology(), torch.get_num_threads(), why)
        _world = World(binding=alone)
        return _world
    patience_s = max(_JOIN_S, timeout_s)
    store = _store = PrefixStore(f"torch_cpullm/{_tried}", _meet(environment, patience_s))
    _tried += 1
    found = Found(
        host=this_host(environment),
        torchruns_threads=has_set_threads(environment),
        masks=_masks(world, store, patience_s),
        threads=torch.get_num_threads(),
        has_memory_policy=has_memory_policy(),
    )
    world = replace(world, binding=bind(choose_binding(found, world.local_rank)))
    if world.size > 1:
        rank = Rank(world.rank, world.size, world.hosts, PrefixStore("reach", store), timeout_s)
        world = replace(world, reach=open_reach(rank, transport))
    _world = world
    return world


def world() -> World | None:
    """The world that init() has joined; None before it, and after shutdown()."""
    return _world


def shutdown() -> None:
    """Leave the world: init() may join again. Models that were shared in it work no more, and ranks that wait are told.

    CPUs, threads and memory stay as they are. Does nothing before init().
    """
    global _world
    if _world is not None and _world.reach is not None:
        close_group(_world.reach.group)
    _world = None


def _meet(environment: Mapping[str, str], patience_s: float) -> Store:
    try:
        store: Store = next(rendezvous("env://", timeout=timedelta(seconds=patience_s)))[0]
    except (RuntimeError, ValueError) as error:
        address = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
        raise RankError(
            f"MASTER_ADDR: expected the store of the job at {address}, found none ({str(error).splitlines()[0]}); "
            "start this script with torchrun or torch-cpullm launch --sockets N"
        ) from error
    return store


def _masks(world: World, store: Store, patience_s: float) -> tuple[tuple[int, ...], ...]:
    """The affinity masks of all ranks of this host, by their local numbers."""
    keys = [f"mask/{world.host}/{local_rank}" for local_rank in range(world.local_size)]
    store.set(keys[world.local_rank], write_cpu_list(_own_mask()))
    deadline = time.monotonic() + patience_s
    while not store.check(keys):  # not store.wait, in which Ctrl-C would wait as well
        if time.monotonic() > deadline:
            missing = ", ".join(str(local_rank) for local_rank, key in enumerate(keys) if not store.check([key]))
            raise RankError(
                f"init: expected all {world.local_size} ranks of host {world.host} within {patience_s:g} s, local rank "
                f"{missing} did not come; every rank has to call torch_cpullm.distributed.init()"
            )
        time.sleep(_POLL_S)
    return tuple(parse_cpu_list(store.get(key).decode()) for key in keys)


def _own_mask() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))
