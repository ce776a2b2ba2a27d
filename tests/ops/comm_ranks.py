"""What the ranks of test_comm.py do, in processes of their own. Each gives texts, numbers and tensors back."""

import os
import random
import signal
import time
from pathlib import Path

import torch
from torch.distributed import PrefixStore

from torch_cpullm.distributed.shm import open_shm
from torch_cpullm.errors import CollectiveError
from torch_cpullm.ops import comm
from torch_cpullm.reference.comm import summed

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# One element, less than a vector, a vector and its neighbours, and around the border of 256 KiB where slices begin.
SIZES = [1, 3, 15, 16, 17, 100, 4096, (256 << 10) // 4, (256 << 10) // 4 + 1, (256 << 10) // 2 + 1, 300_001]
PATIENCE_S = 300.0  # of collectives that shall succeed: the machine may be busy, or paused
SHORT_S = 2.0  # of those that shall not


def tensor_of(rank, seed, shape, dtype):
    """Values of many magnitudes that every rank can make for every other."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    x = torch.randn(shape, generator=generator) * 2.0 ** torch.randint(-8, 8, shape, generator=generator)
    return x.to(dtype)


def differs(got, expected, what):
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return [f"{what}: {got.dtype} {list(got.shape)} instead of {expected.dtype} {list(expected.shape)}"]
    count = int((got.flatten().view(torch.uint8) != expected.flatten().view(torch.uint8)).sum()) if got.numel() else 0
    return [f"{what}: {count} bytes differ"] if count else []


def check_all_reduce(rank, size, group, shape, dtype, seed, threads=1):
    """`threads` take part in the collective alone: in the rest, ranks' threads would wait for each other's CPUs."""
    parts = [tensor_of(other, seed, shape, dtype) for other in range(size)]
    x = parts[rank].clone()
    address = x.data_ptr()
    torch.set_num_threads(threads)
    comm.all_reduce_(x, group)
    torch.set_num_threads(1)
    faults = differs(x, summed(parts), f"all_reduce_ of {shape} {dtype}")
    return faults + (["all_reduce_ moved x"] if x.data_ptr() != address else [])


def check_broadcast(rank, size, group, shape, dtype, seed):
    root = seed % size
    expected = tensor_of(root, seed, shape, torch.float32).to(dtype)
    x = expected.clone() if rank == root else torch.zeros(shape, dtype=dtype)
    comm.broadcast_(x, root, group)
    return differs(x, expected, f"broadcast_ of {shape} {dtype} from {root}")


def check_all_gather(rank, size, group, shape, dtype, seed):
    parts = [tensor_of(other, seed, shape, torch.float32).to(dtype) for other in range(size)]
    got = comm.all_gather(parts[rank], group)
    return differs(got, torch.stack(parts), f"all_gather of {shape} {dtype}")


def all_that_works(rank, size, store):
    """One job for what needs no job of its own: starting a process takes longer than any of it."""
    faults = every_operation(rank, size, store) + random_collectives(rank, size, store, 500)
    if size == 4:
        faults += two_jobs(rank, store)
    if "/dev/shm" in Path("/proc/self/maps").read_text(encoding="utf-8"):
        faults.append("this rank uses /dev/shm")
    return faults


def every_operation(rank, size, store):
    """All operations, types and sizes, in teams of one thread and of two; pieces, and more than one group."""
    faults = []
    torch.set_num_threads(1)
    group = open_shm(PrefixStore("whole", store), rank, size, PATIENCE_S)
    small = open_shm(PrefixStore("pieces", store), rank, size, PATIENCE_S, part_bytes=4096)
    for threads in (2, 1):
        for seed, elements in enumerate(SIZES):
            for dtype in FLOATS:
                faults += check_all_reduce(rank, size, group, (elements,), dtype, seed, threads)
    for seed, shape in enumerate([(0,), (5,), (3, 7), (2, 3, 4), (), (4096,), (5000, 3)]):
        for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8):
            faults += check_broadcast(rank, size, group, shape, dtype, seed)
            faults += check_all_gather(rank, size, group, shape, dtype, seed)
        faults += check_broadcast(rank, size, small, shape, torch.int64, seed)
        faults += check_all_gather(rank, size, small, shape, torch.int64, seed)
        for dtype in FLOATS:
            faults += check_all_reduce(rank, size, small, shape, dtype, seed)
    strided = tensor_of(rank, 0, (6, 4), torch.float32).T
    gathered = comm.all_gather(strided, group)
    faults += differs(gathered[rank], strided.contiguous(), "all_gather of a transposed tensor")
    for _ in range(3):
        comm.barrier(group)
    info = comm.group_info(group)
    if info[:3] != ("shm", rank, size):
        faults.append(f"group_info: {info}")
    faults += gives_memory_back(rank, size, group)
    comm.close_group(small)
    comm.close_group(group)
    return faults


def gives_memory_back(rank, size, group):
    """Slots of 40 MiB shrink when something small follows."""
    large = torch.full((10 << 20,), float(rank))
    for _ in range(2):
        comm.all_reduce_(large.fill_(rank), group)
    faults = [] if bool((large == sum(range(size))).all()) else ["all_reduce_ of 40 MiB"]
    full = shared_kib()
    for _ in range(2):
        comm.barrier(group)
    faults += check_all_reduce(rank, size, group, (4096,), torch.float32, 1)
    comm.barrier(group)
    if full - shared_kib() < 2 * 20 << 10:
        faults.append(f"shared memory went from {full} KiB to {shared_kib()} only")
    return faults


def shared_kib():
    """Resident shared memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssShmem"))


def random_collectives(rank, size, store, count):
    """`count` operations drawn alike on all ranks, some of which come late."""
    group = open_shm(PrefixStore("random", store), rank, size, PATIENCE_S)
    choose, lag = random.Random(7), random.Random(rank)
    faults = []
    for seed in range(count):
        check = choose.choice([check_all_reduce, check_all_reduce, check_broadcast, check_all_gather])
        elements = choose.choice([1, 17, 500, 2048, 4096]) if choose.random() < 0.98 else choose.randrange(200_000)
        dtype = choose.choice(FLOATS)
        if lag.random() < 0.02:
            time.sleep(lag.random() * 0.003)
        faults += check(rank, size, group, (elements,), dtype, seed)
    return faults


def error_of(call, *arguments):
    """The text of the CollectiveError, and the seconds until it came; the same group then refuses at once."""
    begin = time.monotonic()
    try:
        call(*arguments)
    except CollectiveError as error:
        return str(error), time.monotonic() - begin
    return "nothing was raised", 0.0


def another_tensor(rank, size, store):
    """The last rank asks for something else than the others, each time in a new group; then the group refuses."""
    odd = int(rank == size - 1)
    four = torch.zeros(4)
    calls = {
        "shape": lambda group: comm.all_reduce_(torch.zeros(8) if odd else four, group),
        "dtype": lambda group: comm.all_reduce_(four.bfloat16() if odd else four, group),
        "operation": lambda group: comm.barrier(group) if odd else comm.all_reduce_(four, group),
        "root": lambda group: comm.broadcast_(four, odd, group),
    }
    texts = {}
    for kind, call in calls.items():
        group = open_shm(PrefixStore(kind, store), rank, size, PATIENCE_S)
        texts[kind] = [error_of(call, group)[0], error_of(comm.barrier, group)[0]]
    return texts


def lost(rank, size, store, how, opener=open_shm):
    """The last rank is gone or stands still, after some collectives that went well."""
    group = opener(PrefixStore("lost", store), rank, size, SHORT_S if how == "stopped" else PATIENCE_S)
    x = torch.ones(5000)
    for _ in range(10):
        comm.all_reduce_(x.fill_(1.0), group)
    if rank == size - 1:
        if how == "raised":
            raise RuntimeError("a fault of this rank's own")
        if how == "closed":
            comm.close_group(group)
            return ("", 0.0)
        os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    return error_of(comm.all_reduce_, x, group)


def ends_after_its_part(rank, size, store):
    """The last rank arrives and exits; the others look for it only long after."""
    group = open_shm(PrefixStore("early", store), rank, size, PATIENCE_S)
    x = torch.full((3,), float(rank))
    comm.barrier(group)
    if rank == size - 1:
        comm.all_reduce_(x, group)
        return x
    if rank == 0:
        time.sleep(1.0)
    comm.all_reduce_(x, group)
    return x


def interrupted(rank, size, store):
    """Rank 0 waits and gets the signal of Ctrl-C: first as Python handles it, then with a handler that returns."""
    seen = []
    for turn in ("python's", "the user's"):
        group = open_shm(PrefixStore(turn, store), rank, size, PATIENCE_S)
        pids = comm.all_gather(torch.tensor(os.getpid()), group)
        if rank != 0:
            time.sleep(1.0)
            os.kill(int(pids[0]), signal.SIGINT)
            store.wait([f"after {turn}"])
            seen.append(error_of(comm.barrier, group)[0])
            continue
        try:
            comm.barrier(group)
        except KeyboardInterrupt:
            seen.append("KeyboardInterrupt")
        except CollectiveError as error:
            seen.append(str(error))
        store.set(f"after {turn}", "")
        signal.signal(signal.SIGINT, lambda *_: seen.append("handler"))
    return seen


def two_jobs(rank, store):
    """Four ranks as two groups of two, at the same time, with shapes of their own."""
    job, place = divmod(rank, 2)
    group = open_shm(PrefixStore(f"job {job}", store), place, 2, PATIENCE_S)
    faults = []
    for seed in range(500):
        faults += check_all_reduce(place, 2, group, (1000 + 500 * job,), torch.float32, seed + 1000 * job)
    return faults


def unreachable(rank, size, store):
    """Rank 1 is told a descriptor that is not there: every rank gets the reason, and can go on with something else."""
    if rank == 1:
        store = _Misdirected(store)
    try:
        open_shm(PrefixStore("nowhere", store) if rank != 1 else store, rank, size, PATIENCE_S)
    except CollectiveError as error:
        return str(error)
    return "nothing was raised"


class _Misdirected:
    """A store whose addresses lead nowhere."""

    def __init__(self, store):
        self._store = PrefixStore("nowhere", store)

    def get(self, key):
        found = self._store.get(key)
        return f"{os.getpid()} 987654 1".encode() if key == "address" else found

    def set(self, key, value):
        self._store.set(key, value)
