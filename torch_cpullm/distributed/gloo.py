"""Opens groups over gloo, which torch brings along: the fallback, and what other transports are compared with."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import _register_process_group, _unregister_process_group
from torch.distributed import ProcessGroup, ProcessGroupGloo
from torch.distributed.distributed_c10d import GroupName, Store

from torch_cpullm import config
from torch_cpullm.distributed.seats import meet
from torch_cpullm.ops import comm_open

_CONNECT_S = 300.0


def open_gloo(store: Store, rank: int, size: int, timeout_s: float) -> int:
    """Return the number of a new group, when all ranks have it.

    It is none of the process groups that `torch.distributed` lists, and needs no `init_process_group`.

    Args:
        store: shared by these ranks, and empty of other groups' keys: `PrefixStore(name, store)` makes it so.
        rank: this process, 0 to size - 1.
        size: processes, on any hosts.
        timeout_s: what any collective of the group waits for another rank.

    Raises:
        ConfigError: no network interface leads to the others.
    """
    seats = meet(store, rank, size)
    gloo: Any = ProcessGroupGloo  # whose stubs leave out what follows
    options = gloo._Options()
    # For connecting, too. What a collective waits is up to the group, so this one only has to be longer.
    options._timeout = timedelta(seconds=max(_CONNECT_S, 2 * timeout_s))
    chosen = config.environment().get("GLOO_SOCKET_IFNAME")
    options._devices = [
        ProcessGroupGloo.create_default_device()
        if chosen
        else ProcessGroupGloo.create_device(interface=seats.interface)
    ]
    backend = ProcessGroupGloo(store, rank, size, options)
    group = ProcessGroup(store, rank, size)
    group._register_backend(torch.device("cpu"), ProcessGroup.BackendType.GLOO, backend)
    # An operator takes no objects, so it is handed over by name. Then only the group in C++ holds the backend, which
    # cannot always be destroyed.
    name = GroupName(f"torch_cpullm/{uuid.uuid4()}")
    _register_process_group(name, group)
    try:
        return comm_open.open_gloo(name, seats.patience(timeout_s))
    finally:
        _unregister_process_group(name)
