"""Where packed weights live: chunks they share, and leave when the last of them does."""

import copy
import gc
import io
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from torch_cpullm.formats import INT8
from torch_cpullm.ops import linear as ops


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def pack(seed, columns=1024, depth=1100):  # 1.1 MB: smaller ones do not share
    weight = torch.randn(columns, depth, generator=torch.Generator().manual_seed(seed))
    return ops.pack(weight, None, INT8)


def test_neighbours_do_not_touch_each_other():
    packed = [pack(seed) for seed in range(8)]
    before = [each.clone() for each in packed]
    assert all(each.data_ptr() % 64 == 0 for each in packed)
    spans = sorted((each.data_ptr(), each.data_ptr() + each.numel()) for each in packed)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    kept = before.pop(3), packed.pop(3)
    del packed, before
    more = [pack(seed + 100) for seed in range(8)]
    assert torch.equal(*kept)
    assert len(more) == 8


def test_copies_are_as_good():
    packed = pack(1)
    x = torch.randn(3, 1100)
    file = io.BytesIO()
    torch.save(packed, file)
    file.seek(0)
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), torch.load(file, weights_only=True)):
        assert torch.equal(ops.linear(x, twin), ops.linear(x, packed))


def test_threads_may_pack_at_once():
    expected = [pack(seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(pack, range(16)), expected, strict=True):
            assert torch.equal(got, want)


def test_memory_comes_back_with_the_last_weight():
    weight = torch.randn(4096, 4096)  # made once: a sanitizer keeps what is freed for a while
    ops.pack(weight, None, INT8)
    gc.collect()
    before = resident_bytes()
    for _ in range(5):
        held = [ops.pack(weight, None, INT8) for _ in range(6)]  # 100 MB: more than one chunk
        assert resident_bytes() > before + 60e6
        del held
    assert resident_bytes() < before + 40e6


def test_a_weight_larger_than_a_chunk():
    weight = torch.randn(256, 500).repeat(600, 1)  # 77 MB packed
    packed = ops.pack(weight, None, INT8)
    assert packed.numel() > 64 << 20
    x = torch.randn(1, 500)
    assert torch.equal(ops.linear(x, packed).view(600, 256)[599], ops.linear(x, ops.pack(weight[:256], None, INT8))[0])


def test_parts_leave_no_room_for_their_wholes():
    """What is packed to be cut lies elsewhere, and is gone when it was."""
    weight = torch.randn(4096, 4096)
    first = ops.pack(weight, None, INT8, lasting=False)
    parts = [ops.slice_packed(first, [(0, 512)], (0, 4096), bias=True)]
    del first
    gc.collect()
    before = resident_bytes()
    for _ in range(20):
        whole = ops.pack(weight, None, INT8, lasting=False)
        parts.append(ops.slice_packed(whole, [(0, 512)], (0, 4096), bias=True))  # 2 MB of 17
        del whole
    assert resident_bytes() < before + 80e6
    assert all(torch.equal(part, parts[0]) for part in parts)
