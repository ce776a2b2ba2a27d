"""The page pool: all or nothing, shared until written, and no byte moved that need not."""

import copy
import re
from pathlib import Path

import pytest
import torch

from torch_cpullm.errors import ConfigError, OutOfPagesError
from torch_cpullm.kv import LayerSpec, PagedCache, PagePool
from torch_cpullm.ops import attention as ops
from torch_cpullm.ops.attention import PAGE_TOKENS

SPEC = LayerSpec(kv_heads=2, channels=32, format="int8")
PAGE = 2 * SPEC.page_bytes  # two layers


def cache_of(pages, batch=1):
    return PagedCache([SPEC, SPEC], limit_bytes=pages * PAGE), batch


def feed(cache, batch, tokens):
    """Append the same random tokens to both layers; returns what layer 0 reads back."""
    key, value = torch.randn(2, batch, 2, tokens, 32)
    out = [cache.update(key, value, layer) for layer in (0, 1)]
    return out[0]


def test_pages_come_with_tokens():
    cache, _ = cache_of(10)
    assert cache.pool.used_pages == 0
    for tokens, pages in ((1, 1), (63, 1), (1, 2), (128, 4)):
        feed(cache, 1, tokens)
        assert cache.pool.used_pages == pages
    assert cache.get_seq_length() == 193


def test_growth_copies_nothing():
    cache, _ = cache_of(40)
    feed(cache, 1, 80)
    start, first = cache.pool.pages.data_ptr(), cache.pool.pages[0].clone()
    feed(cache, 1, 1800)
    assert cache.pool.pages.data_ptr() == start
    assert torch.equal(cache.pool.pages[0], first)


def test_out_of_pages_changes_nothing():
    cache, _ = cache_of(4, 2)
    before = feed(cache, 2, 120)
    with pytest.raises(OutOfPagesError, match=r"KV pool: 2 more pages .* 0 of 4 left.*TORCH_CPULLM_KV_LIMIT"):
        feed(cache, 2, 20)
    assert cache.get_seq_length() == 120
    assert cache.pool.used_pages == 4
    after = feed(cache, 2, 8)  # what fits still goes in
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:, :, :120], old)


def test_a_full_pool_spares_other_sequences():
    pool = PagePool([SPEC, SPEC], limit_bytes=3 * PAGE)
    mine, theirs = PagedCache(pool.layers, pool), PagedCache(pool.layers, pool)
    before = feed(mine, 1, 65)
    with pytest.raises(OutOfPagesError):
        feed(theirs, 1, 80)
    assert theirs.get_seq_length() == 0
    feed(theirs, 1, 40)
    assert pool.used_pages == 3
    del theirs
    assert pool.used_pages == 2
    after = feed(mine, 1, 1)
    assert torch.equal(after[0][:, :, :65], before[0])


def test_a_limit_below_one_page():
    with pytest.raises(OutOfPagesError, match="limit_bytes"):
        PagePool([SPEC], limit_bytes=100)


def test_limit_from_the_environment(monkeypatch):
    monkeypatch.setenv("TORCH_CPULLM_KV_LIMIT", str(5 * PAGE))
    assert PagePool([SPEC, SPEC]).capacity == 5
    monkeypatch.setenv("TORCH_CPULLM_KV_LIMIT", "lots")
    with pytest.raises(ConfigError, match="TORCH_CPULLM_KV_LIMIT"):
        PagePool([SPEC, SPEC])


def test_forks_share_until_written():
    cache, _ = cache_of(20)
    original = feed(cache, 1, 80)
    fork = copy.deepcopy(cache)
    assert cache.pool.used_pages == 2  # nothing copied yet
    mine, theirs = feed(cache, 1, 1), feed(fork, 1, 1)
    assert cache.pool.used_pages == 3  # one private copy of the page both wrote to
    for key in (mine[0], theirs[0]):
        assert torch.equal(key[:, :, :80], original[0])
    assert not torch.equal(mine[0], theirs[0])
    del fork
    assert cache.pool.used_pages == 2


def test_reorder_select_and_repeat_are_table_work():
    cache, _ = cache_of(40, 3)
    before = feed(cache, 3, 65)[0]
    pages = cache.pool.used_pages
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    assert cache.pool.used_pages == pages - 2  # nobody continues sequence 1
    assert torch.equal(feed(cache, 3, 1)[0][:, :, :65], before[[2, 2, 0]])
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([5, 0, 1]))
    assert torch.equal(feed(cache, 3, 1)[0][:, :, :65], before[[0, 2, 2]])
    cache.batch_select_indices(torch.tensor([True, False, False]))
    assert torch.equal(feed(cache, 1, 1)[0][:, :, :65], before[[0]])


def test_crop_and_reset():
    cache, _ = cache_of(40)
    before = feed(cache, 1, 200)[0]
    cache.crop(-120)
    assert (cache.get_seq_length(), cache.pool.used_pages) == (80, 2)
    assert torch.equal(feed(cache, 1, 1)[0][:, :, :80], before[:, :, :80])
    with pytest.raises(ValueError, match="tokens_to_remove"):
        cache.crop(5)
    cache.reset()
    assert (cache.get_seq_length(), cache.pool.used_pages) == (0, 0)
    feed(cache, 4, 3)  # an empty cache takes any batch


def test_another_batch_is_refused():
    cache, _ = cache_of(10)
    feed(cache, 2, 3)
    with pytest.raises(ValueError, match="past_key_values: this cache holds 2 sequences, the input has 3"):
        feed(cache, 3, 1)


def test_waste_is_less_than_a_page():
    cache, _ = cache_of(40)
    for _ in range(100):
        feed(cache, 1, 1)
        assert cache.pool.used_pages * PAGE_TOKENS - cache.get_seq_length() < PAGE_TOKENS


def test_memory_is_touched_only_when_written():
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    cache = PagedCache([SPEC, SPEC], limit_bytes=4 << 30)
    feed(cache, 1, 10)
    assert process.memory_info().rss - before < 16 << 20


def resident_bytes(address):
    """Of the mapping that holds `address`."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", words[0]):
            start, end = (int(part, 16) for part in words[0].split("-"))
            inside = start <= address < end
        elif inside and words[0] == "Rss:":
            return int(words[1]) << 10
    raise AssertionError("the pool lies in no mapping")


def test_32k_tokens_take_what_their_codes_and_scales_take():
    """One sequence of the Llama-3.2-1B shape, two of its layers: within 2 % of the computed size."""
    spec = LayerSpec(kv_heads=8, channels=64, format="int8")
    tokens, step = 32768, 2048
    key, value = torch.randn(2, 1, 8, step, 64).bfloat16()
    cache = PagedCache([spec, spec])
    for _ in range(tokens // step):
        for layer in cache.paged_layers:
            ops.kv_append(layer.open(1, step), key.transpose(1, 2), value.transpose(1, 2))
            layer.close(step)
    computed = 2 * tokens * 8 * 2 * (64 + 4)
    assert cache.pool.used_pages * cache.pool.page_bytes == computed
    two_borders = 2 << 21  # huge pages that the pool begins and ends in
    assert resident_bytes(cache.pool.pages.data_ptr()) <= 1.02 * computed + two_borders
    assert cache.get_seq_length() == tokens


def test_64_sequences_of_mixed_length_take_their_sum():
    """Caches of their own on one pool: pages for each length, a page of waste at most, and nothing is copied."""
    pool = PagePool([SPEC, SPEC])
    lengths = [1 + 37 * i % 300 for i in range(64)]
    caches = []
    for length in lengths:
        caches.append(PagedCache(pool.layers, pool))
        feed(caches[-1], 1, length)
    assert pool.used_pages == sum(-(-length // PAGE_TOKENS) for length in lengths)
    assert pool.copied_pages == 0
    for cache, length in zip(caches, lengths, strict=True):
        assert cache.get_seq_length() == length


def test_appending_copies_no_page_and_beams_copy_one_each():
    cache, _ = cache_of(80, 1)
    feed(cache, 1, 2000)
    for _ in range(100):
        feed(cache, 1, 1)
    alone = cache.pool.used_pages
    assert cache.pool.copied_pages == 0
    cache.batch_repeat_interleave(4)
    feed(cache, 4, 1)
    assert cache.pool.copied_pages == 3  # the last page, which one beam keeps
    assert cache.pool.used_pages < 1.1 * alone


def test_codes_and_scales_against_bf16():
    for channels in (128, 256):
        int8, bf16 = (LayerSpec(8, channels, format).page_bytes for format in ("int8", "bf16"))
        assert int8 <= 0.52 * (bf16 - 8 * 8 * PAGE_TOKENS)  # bf16 without the scales it does not need
