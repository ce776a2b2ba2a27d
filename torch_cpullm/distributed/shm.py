"""Opens the group of shared memory that all ranks of one host form; a store carries what they must know."""

from __future__ import annotations

from torch.distributed import Store  # type: ignore[attr-defined]  # torch leaves it out of __all__

from torch_cpullm.errors import CollectiveError
from torch_cpullm.ops.comm import PART_BYTES, ShmAddress, close_group, shm_create, shm_open


def open_shm(store: Store, rank: int, size: int, timeout_s: float, part_bytes: int = PART_BYTES) -> int:
    """Return the number of a new group, when all ranks have it; or raise on all of them.

    Args:
        store: shared by these ranks, and empty of other groups' keys: `PrefixStore(name, store)` makes it so.
        rank: this process, 0 to size - 1.
        size: processes, all on this host.
        timeout_s: what any collective of the group waits for another rank.
        part_bytes: what one rank can hand over at once.

    Raises:
        CollectiveError: some rank cannot reach the memory; names it and says why. Another transport is needed.
    """
    group, fault = 0, ""
    try:
        if rank == 0:
            group, made = shm_create(size, timeout_s, part_bytes)
            store.set("address", " ".join(map(str, made)))
        else:
            address = store.get("address").decode()
            if not address:
                raise CollectiveError("rank 0 has made none")
            group = shm_open(ShmAddress(*map(int, address.split())), rank, timeout_s)
    except CollectiveError as error:
        fault = str(error)
        if rank == 0:
            store.set("address", "")
    store.set(f"fault of rank {rank}", fault)
    for other in range(size):
        theirs = store.get(f"fault of rank {other}").decode()
        if theirs:
            close_group(group)
            raise CollectiveError(f"no shared memory between the ranks: rank {other}: {theirs}")
    return group
