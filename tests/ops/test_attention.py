"""The KV pool's ops and SlimAttention against their definitions."""

import pytest
import torch

from torch_cpullm.ops import attention as ops
from torch_cpullm.reference import attention as reference
from torch_cpullm.testing.pages import empty_pages, filled_pages
from torch_cpullm.testing.tolerances import EPS, assert_within

FORMATS = ["f32", "bf16", "int8"]
BORDERS = [1, 2, 31, 32, 33, 63, 64, 65, 255, 256, 257, 300]


def tokens_of(batch, length, kv_heads, channels):
    return torch.randn(batch, length, kv_heads, channels), torch.randn(batch, length, kv_heads, channels)


def expect(query, key, value, past, mask, scale, soft_cap, format):
    key, value = reference.round_kv(key, format), reference.round_kv(value, format)
    seen = reference.visible(past, query.shape[1], key.shape[1], mask)
    return reference.attention(query, key, value, seen, scale, soft_cap)


def bound_for(query, key, value, scale):
    """Softmax weights sum to one: errors of the scores (C roundings) and of the sum, times the largest value."""
    scores = float(query.abs().sum(-1).max() * key.abs().max()) * scale
    return (8 + 2 * query.shape[-1] * scores + key.shape[1]) * EPS * float(value.abs().max())


def check(shape, format, past=0, mask=None, soft_cap=0.0):
    batch, tokens, heads, kv_heads, channels = shape
    length = past + tokens
    key, value = tokens_of(batch, length, kv_heads, channels)
    query = torch.randn(batch, tokens, heads, channels)
    past_B = torch.full((batch,), past)
    scale = channels**-0.5
    got = ops.paged_attention(query, filled_pages(key, value, past_B, format), mask, scale, soft_cap)
    expected = expect(query, key, value, past_B, mask, scale, soft_cap, format)
    assert_within(got, expected, bound_for(query, key, value, scale))
    return got


@pytest.mark.parametrize("length", BORDERS)
@pytest.mark.parametrize("format", FORMATS)
def test_decode_at_page_borders(length, format):
    check((2, 1, 6, 2, 64), format, past=length - 1)


@pytest.mark.parametrize("length", BORDERS)
@pytest.mark.parametrize("format", FORMATS)
def test_prefill_at_page_borders(length, format):
    check((1, length, 4, 2, 32), format)


@pytest.mark.parametrize("channels", range(16, 257, 16))
def test_head_sizes(channels):
    check((1, 5, 2, 1, channels), "int8", past=40)


@pytest.mark.parametrize("group", range(1, 9))
def test_groups(group):
    check((1, 9, 2 * group, 2, 32), "int8", past=30)


@pytest.mark.parametrize("format", FORMATS)
def test_chunk_of_queries_over_a_past(format):
    check((2, 37, 4, 2, 48), format, past=290)


@pytest.mark.parametrize("soft_cap", [0.5, 30.0])
def test_soft_cap(soft_cap):
    check((1, 20, 4, 2, 32), "f32", past=50, soft_cap=soft_cap)


def test_left_padding():
    mask = torch.ones(3, 1, 40, 40, dtype=torch.bool).tril()
    mask[1, :, :, :7], mask[2, :, :, :33] = False, False
    got = check((3, 40, 4, 2, 32), "int8", mask=mask)
    assert torch.equal(got[1, :7], torch.zeros(7, 4, 32))  # rows that see nothing are exactly zero
    assert torch.equal(got[2, :33], torch.zeros(33, 4, 32))


@pytest.mark.parametrize("heads_of_mask", [1, 4])
def test_arbitrary_masks(heads_of_mask):
    mask = torch.rand(2, heads_of_mask, 11, 75) < 0.3
    mask[0, :, 4] = False
    got = check((2, 11, 4, 2, 32), "int8", past=64, mask=mask)
    assert torch.equal(got[0, 4], torch.zeros(4, 32))


def test_a_mask_may_be_wider_and_strided():
    key, value = tokens_of(1, 40, 2, 32)
    kv = filled_pages(key, value, torch.tensor([39]), "f32")
    query = torch.randn(1, 1, 4, 32)
    wide = torch.rand(1, 1, 1, 100) < 0.5
    assert torch.equal(
        ops.paged_attention(query, kv, wide, 0.2), ops.paged_attention(query, kv, wide[..., :40].contiguous(), 0.2)
    )


def test_sequences_of_unlike_length():
    key, value = tokens_of(3, 300, 2, 32)
    query, past = torch.randn(3, 2, 4, 32), torch.tensor([0, 150, 298])
    got = ops.paged_attention(query, filled_pages(key, value, past, "int8"), None, 0.2)
    expected = expect(query, key, value, past, None, 0.2, 0.0, "int8")
    assert_within(got, expected, bound_for(query, key, value, 0.2))


@pytest.mark.parametrize("format", FORMATS)
def test_bits_for_any_batch_block_and_team(format):
    """One row alone, in a block, in a batch, with the tokens split between threads or not: the same bits."""
    key, value = tokens_of(2, 700, 1, 64)
    query = torch.randn(2, 60, 3, 64)
    past = torch.full((2,), 640)
    torch.set_num_threads(1)
    expected = ops.paged_attention(query, filled_pages(key, value, past, format), None, 0.125)
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        assert torch.equal(ops.paged_attention(query, filled_pages(key, value, past, format), None, 0.125), expected)
        for row in (0, 17, 59):
            one = filled_pages(key[1:], value[1:], torch.tensor([640 + row]), format)
            assert torch.equal(
                ops.paged_attention(query[1:, row : row + 1], one, None, 0.125), expected[1:, row : row + 1]
            )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("format", FORMATS)
def test_a_bad_token_is_seen_only_by_who_attends_to_it(bad, format):
    key, value = tokens_of(1, 80, 1, 32)
    query = torch.randn(1, 80, 2, 32)
    past = torch.zeros(1, dtype=torch.int32)
    clean = ops.paged_attention(query, filled_pages(key, value, past, format), None, 0.2)
    for spoilt in (key, value):
        kept = spoilt[0, 50].clone()
        spoilt[0, 50, 0, 3] = bad
        got = ops.paged_attention(query, filled_pages(key, value, past, format), None, 0.2)
        assert torch.equal(got[:, :50], clean[:, :50])
        assert got[:, 50:].isnan().all()
        hidden = torch.ones(1, 1, 80, 80, dtype=torch.bool).tril()
        hidden[..., 50] = False
        masked = ops.paged_attention(query, filled_pages(key, value, past, format), hidden, 0.2)
        assert masked.isfinite().all()
        spoilt[0, 50] = kept


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_cached_reads_back_rounded(format):
    key, value = tokens_of(2, 70, 3, 48)
    got = ops.kv_gather(filled_pages(key, value, torch.zeros(2), format), 70, 48)
    for have, want in zip(got, (key, value), strict=True):
        assert torch.equal(have.transpose(1, 2), reference.round_kv(want, format))


def test_appending_in_pieces_is_appending_at_once():
    key, value = tokens_of(1, 70, 2, 32)
    whole = filled_pages(key, value, torch.zeros(1), "int8")
    kv = empty_pages(1, 70, 2, 32, "int8")
    for start, stop in ((0, 1), (1, 33), (33, 70)):
        piece = ops.KvPages(kv.pages, kv.table_BP, torch.tensor([start], dtype=torch.int32), 2, "int8")
        ops.kv_append(piece, key[:, start:stop], value[:, start:stop])
    for left, right in zip(ops.kv_gather(kv, 70, 32), ops.kv_gather(whole, 70, 32), strict=True):
        assert torch.equal(left, right)


def test_bytes_of_an_int8_token():
    per_token = ops.layer_bytes(1, 128, "int8") / ops.PAGE_TOKENS
    assert per_token <= 0.52 * 2 * 2 * 128


def test_slim_attention_over_dense_tensors():
    key, value = tokens_of(2, 90, 2, 64)
    query = torch.randn(2, 50, 4, 64)
    got = ops.slim_attention(query, key, value, None, 0.125)
    expected = expect(query, key, value, torch.full((2,), 40), None, 0.125, 0.0, "f32")
    assert_within(got, expected, bound_for(query, key, value, 0.125))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_queries(dtype):
    key, value = tokens_of(1, 20, 2, 32)
    query = torch.randn(1, 3, 4, 32).to(dtype)
    kv = filled_pages(key, value, torch.tensor([17]), "int8")
    got = ops.paged_attention(query, kv, None, 0.2)
    assert got.dtype == dtype
    assert torch.equal(got, ops.paged_attention(query.float(), kv, None, 0.2).to(dtype))
