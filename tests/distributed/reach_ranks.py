"""What the ranks of test_reach.py do."""

import time

import torch
from torch.distributed import PrefixStore

from torch_cpullm.distributed.agreement import meet, require_same
from torch_cpullm.distributed.gloo import open_gloo
from torch_cpullm.distributed.shm import open_shm
from torch_cpullm.errors import CollectiveError, RankError
from torch_cpullm.ops import comm

PATIENCE_S = 120.0


def two_ways(rank, size, store):
    """A group that takes shared memory up to 1 KiB and gloo above."""
    small = open_shm(PrefixStore("small", store), rank, size, PATIENCE_S)
    large = open_gloo(PrefixStore("large", store), rank, size, PATIENCE_S)
    found = {"refused": []}
    routed = comm.route_groups([small, large], [1024])
    for groups, limits in (([], []), ([small], [1]), ([small, large], [-1]), ([small, 999], [1]), ([routed], [])):
        found["refused"].append(refusal(lambda groups=groups, limits=limits: comm.route_groups(groups, limits)))
    comm.close_group(small)
    comm.close_group(large)
    found["info"] = list(comm.group_info(routed)[:3])
    found["sums"], found["counts"] = [], []
    for elements in (256, 257):
        before = comm.group_info(routed).collectives
        x = torch.full((elements,), float(rank + 1))
        comm.all_reduce_(x, routed)
        found["sums"].append(float(x.max()))
        found["counts"].append(comm.group_info(routed).collectives - before)
    comm.barrier(routed)
    comm.close_group(routed)
    found["refused"].append(refusal(lambda: comm.group_info(routed)))
    return found


def refusal(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def agreement(rank, size, store):
    """Texts of what ranks do not agree in; "" where they do."""
    group = open_shm(store, rank, size, PATIENCE_S)
    ids = torch.arange(6)
    brought = (
        {"color": "red", "ids": ids},
        {"color": f"red {rank}", "ids": ids},
        {"color": "red", "ids": ids.view(2, 3) if rank else ids},
        {"color": "red", "ids": ids.int() if rank else ids},
        {"color": "red", "ids": ids} | ({"more": 1} if rank else {}),
    )
    return [disagreement(group, facts) for facts in brought]


def disagreement(group, facts):
    try:
        require_same(group, "work", facts)
    except RankError as error:
        return str(error)
    return ""


def late(rank, size, store):
    """A rank that comes later than a collective would wait for it."""
    group = open_shm(store, rank, size, 0.5)
    begin = time.perf_counter()
    if rank == 1:
        time.sleep(2.0)
    meet(group)
    try:
        comm.barrier(group, PATIENCE_S)
    except CollectiveError:
        return float("nan")
    return time.perf_counter() - begin
