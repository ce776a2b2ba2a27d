"""What the ranks of test_ccl.py and test_gloo.py do, in processes of their own. Each gives texts and numbers back."""

import os
import random
from pathlib import Path

import torch
from torch.distributed import PrefixStore

from tests.ops import comm_ranks
from tests.ops.comm_ranks import (
    FLOATS,
    PATIENCE_S,
    SHORT_S,
    check_all_gather,
    check_all_reduce,
    check_broadcast,
    error_of,
)
from torch_cpullm.distributed import ccl
from torch_cpullm.distributed.ccl import open_ccl
from torch_cpullm.distributed.gloo import open_gloo
from torch_cpullm.errors import CollectiveError
from torch_cpullm.ops import comm

OPEN = {"ccl": open_ccl, "gloo": open_gloo}
# Around a line of 64 bytes, and around the border of 256 KiB where 4 ranks begin to sum slices; then 8 MB.
SIZES = [1, 3, 15, 16, 17, 4096, (256 << 10) // 4, (256 << 10) // 4 + 1, (256 << 10) // 2 + 1, 300_001]
LONGEST = 2_000_003
# What a rank may want else. Where as many bytes are on the way, many groups can fail in one process.
KINDS = [("shape", "dtype", "operation", "root"), ("longer",), ("much longer",), ("long ones",)]


def all_that_works(rank, size, store, transport):
    """All operations, types and sizes, in teams of one thread and of two; random ones; two jobs at the same time."""
    group = OPEN[transport](PrefixStore("whole", store), rank, size, PATIENCE_S)
    info = comm.group_info(group)
    faults = [] if info == (transport, rank, size, 0) else [f"group_info: {info}"]
    torch.set_num_threads(1)
    for threads in (2, 1) if size == 2 else (1,):  # eight threads on two CPUs spend minutes in barriers
        for seed, elements in enumerate(SIZES):
            for dtype in FLOATS:
                faults += check_all_reduce(rank, size, group, (elements,), dtype, seed, threads)
    faults += check_all_reduce(rank, size, group, (LONGEST,), torch.float32, 1)
    for seed, shape in enumerate([(0,), (5,), (3, 7), (), (4096,), (LONGEST,)]):
        for dtype in (torch.float32, torch.int64, torch.bool):
            faults += check_broadcast(rank, size, group, shape, dtype, seed)
            faults += check_all_gather(rank, size, group, shape, dtype, seed)
    for _ in range(3):
        comm.barrier(group)
    faults += random_collectives(rank, size, group, 300)
    if size == 4:
        faults += two_jobs(rank, store, transport)
    if "/dev/shm" in Path("/proc/self/maps").read_text(encoding="utf-8"):
        faults.append("this rank uses /dev/shm")
    if any(name.startswith(("CCL_", "FI_")) for name in os.environ):
        faults.append("variables of the library are left in the environment")
    comm.close_group(group)
    return faults


def random_collectives(rank, size, group, count):
    choose = random.Random(7)
    faults = []
    for seed in range(count):
        check = choose.choice([check_all_reduce, check_all_reduce, check_broadcast, check_all_gather])
        elements = choose.choice([1, 17, 500, 2048, 4096]) if choose.random() < 0.98 else choose.randrange(200_000)
        faults += check(rank, size, group, (elements,), choose.choice(FLOATS), seed)
    return faults


def two_jobs(rank, store, transport):
    """Four ranks as two groups of two, at the same time, with shapes of their own."""
    job, place = divmod(rank, 2)
    group = OPEN[transport](PrefixStore(f"job {job}", store), place, 2, PATIENCE_S)
    faults = []
    for seed in range(100):
        faults += check_all_reduce(place, 2, group, (1000 + 500 * job,), torch.float32, seed + 1000 * job)
    return faults


def another_tensor(rank, size, store, transport, kinds):
    """The last rank asks for something else than the others, each time in a new group; then the group refuses."""
    odd = int(rank == size - 1)
    four, many = torch.zeros(4), torch.zeros(LONGEST)
    calls = {
        "shape": lambda group: comm.all_reduce_(torch.zeros(5) if odd else four, group),
        "longer": lambda group: comm.all_reduce_(torch.zeros(5000) if odd else four, group),
        "much longer": lambda group: comm.all_reduce_(many if odd else four, group),
        "long ones": lambda group: comm.all_reduce_(many[:-100] if odd else many, group),
        "dtype": lambda group: comm.all_reduce_(four.bfloat16() if odd else four, group),
        "operation": lambda group: comm.all_gather(four, group) if odd else comm.all_reduce_(four, group),
        "root": lambda group: comm.broadcast_(four, odd, group),
    }
    texts = {}
    for kind in kinds:
        group = OPEN[transport](PrefixStore(kind, store), rank, size, SHORT_S)
        texts[kind] = [error_of(calls[kind], group)[0], error_of(comm.barrier, group)[0]]
        comm.close_group(group)
    return texts


def lost(rank, size, store, transport, how):
    """As over shared memory."""
    return comm_ranks.lost(rank, size, store, how, OPEN[transport])


def without_oneccl(rank, size, store):
    """Rank 1 has no oneCCL: every rank is told."""
    if rank == 1:
        ccl._LIBRARY = ("a package that is not installed", "libccl.so.1")
    try:
        open_ccl(PrefixStore("missing", store), rank, size, SHORT_S)
    except CollectiveError as error:
        return str(error)
    return "nothing was raised"
