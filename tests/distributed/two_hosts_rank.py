"""One rank of test_two_hosts.py, in a network namespace: python -m tests.distributed.two_hosts_rank TRANSPORT."""

import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed import PrefixStore, TCPStore

from tests.distributed.library_ranks import OPEN, random_collectives
from tests.ops.comm_ranks import PATIENCE_S, check_all_reduce
from torch_cpullm.ops import comm


def main(transport):
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, size, is_master=rank == 0)
    group = OPEN[transport](PrefixStore(transport, store), rank, size, PATIENCE_S)
    networks = comm.all_gather(torch.tensor(Path("/proc/self/ns/net").stat().st_ino), group)
    faults = [] if len(set(networks.tolist())) == size else ["the ranks share a network"]
    faults += random_collectives(rank, size, group, 200)
    faults += check_all_reduce(rank, size, group, (2_000_003,), torch.float32, 1)
    comm.barrier(group)
    # Rank 0 has the store, and whoever asked it would be asking while it goes.
    if rank == 1:
        store.set("rank 1 is done", "")
    else:
        store.get("rank 1 is done")
    return faults


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])))
