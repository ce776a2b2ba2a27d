"""The KV pool's ops and SlimAttention against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_cpullm.ops import attention as ops
from torch_cpullm.reference import attention as reference
from torch_cpullm.testing.guard import guarded
from torch_cpullm.testing.pages import empty_pages, filled_pages
from torch_cpullm.testing.tolerances import assert_within, attention_bound

FORMATS = ["f32", "bf16", "int8"]
BORDERS = [1, 2, 31, 32, 33, 63, 64, 65, 255, 256, 257, 300]


HARD = {
    "lognormal": lambda x: x.exp() * x.sign(),
    "outlier": lambda x: x.index_fill(-1, torch.tensor([3]), 100.0),
    "denormal": lambda x: x * 1e-40,
    "constant": lambda x: torch.full_like(x, -0.7),
    "zero": torch.zeros_like,
    "one token of zeros": lambda x: x.index_fill(1, torch.tensor([5]), 0.0),
}


def tokens_of(batch, length, kv_heads, channels):
    return torch.randn(batch, length, kv_heads, channels), torch.randn(batch, length, kv_heads, channels)


def compare(got, inputs, past, mask, numbers, format):
    """`got` against the definition over keys and values as the cache rounds them; numbers: scale and soft cap."""
    query, key, value = inputs
    key, value = reference.round_kv(key, format), reference.round_kv(value, format)
    seen = reference.visible(past, query.shape[1], key.shape[1], mask)
    problem = reference.AttentionInputs(query, key, value, seen, *numbers)
    assert_within(got, reference.attention(problem), attention_bound(problem, format))


def check(shape, format, past=0, mask=None, soft_cap=0.0):
    batch, tokens, heads, kv_heads, channels = shape
    key, value = tokens_of(batch, past + tokens, kv_heads, channels)
    query = torch.randn(batch, tokens, heads, channels)
    past_B = torch.full((batch,), past)
    scale = channels**-0.5
    rules = ops.ScoreRules(mask=mask, soft_cap=soft_cap)
    got = ops.paged_attention(query, filled_pages(key, value, past_B, format), scale, rules)
    compare(got, (query, key, value), past_B, mask, (scale, soft_cap), format)
    return got


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 330), min_size=1, max_size=3),
    tokens=st.one_of(st.just(1), st.integers(1, 30)),
    group=st.integers(1, 8),
    kv_heads=st.integers(1, 3),
    sixteens=st.integers(1, 6),
    mask_heads=st.sampled_from(["none", "one", "all"]),
    soft_cap=st.sampled_from([0.0, 3.0]),
    threads=st.integers(1, 4),
    format=st.sampled_from(FORMATS),
)
def test_any_problem(lengths, tokens, group, kv_heads, sixteens, mask_heads, soft_cap, threads, format):
    torch.manual_seed(sum(lengths) * 100 + tokens)
    torch.set_num_threads(threads)
    batch, longest, channels, heads = len(lengths), max(lengths) + tokens, 16 * sixteens, group * kv_heads
    key, value = tokens_of(batch, longest, kv_heads, channels)
    query, past = torch.randn(batch, tokens, heads, channels), torch.tensor(lengths)
    mask = None
    if mask_heads != "none":
        mask = torch.rand(batch, 1 if mask_heads == "one" else heads, tokens, longest + 5) < 0.5
    kv = written_up_to(key, value, past, tokens, format)
    got = ops.paged_attention(query, kv, 0.2, ops.ScoreRules(mask=mask, soft_cap=soft_cap))
    compare(got, (query, key, value), past, mask, (0.2, soft_cap), format)


def written_up_to(key, value, past, tokens, format):
    """Pages that hold past + tokens tokens of each sequence and poison behind them."""
    kv = empty_pages(*key.shape, format)
    for b, length in enumerate((past + tokens).tolist()):
        one = kv._replace(table_BP=kv.table_BP[b : b + 1], past_B=torch.zeros(1, dtype=torch.int32))
        ops.kv_append(one, key[b : b + 1, :length], value[b : b + 1, :length])
    return kv._replace(past_B=past.to(torch.int32))


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
@pytest.mark.parametrize("format", FORMATS)
def test_soft_cap(soft_cap, format):
    check((1, 20, 4, 2, 32), format, past=50, soft_cap=soft_cap)


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
    narrow = ops.ScoreRules(mask=wide[..., :40].contiguous())
    got = ops.paged_attention(query, kv, 0.2, ops.ScoreRules(mask=wide))
    assert torch.equal(got, ops.paged_attention(query, kv, 0.2, narrow))


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("threads", [1, 4])
def test_sequences_of_unlike_length(kv_heads, threads):
    """With one KV head and four threads the tokens are split, and the short sequence ends before most of the pieces."""
    torch.set_num_threads(threads)
    key, value = tokens_of(3, 600, kv_heads, 32)
    query, past = torch.randn(3, 2, 4, 32), torch.tensor([0, 250, 598])
    kv = written_up_to(key, value, past, 2, "int8")
    compare(ops.paged_attention(query, kv, 0.2), (query, key, value), past, None, (0.2, 0.0), "int8")
    everything = torch.ones(1, 1, 2, 600, dtype=torch.bool)
    # A mask shows no token that a sequence does not have.
    got = ops.paged_attention(query, kv, 0.2, ops.ScoreRules(mask=everything))
    compare(got, (query, key, value), past, everything, (0.2, 0.0), "int8")


@pytest.mark.parametrize("format", FORMATS)
def test_pages_of_one_layer_among_others(format):
    """Rows of `pages` far apart, as in a pool of many layers; the bytes between them stay as they were."""
    key, value = tokens_of(2, 70, 2, 32)
    alone = empty_pages(2, 70, 2, 32, format)
    width = alone.pages.shape[1]
    pool = torch.full((alone.pages.shape[0], 3 * width + 64), 255, dtype=torch.uint8)
    kv = alone._replace(pages=pool[:, width + 64 : 2 * width + 64])
    for target in (alone, kv):
        ops.kv_append(target, key, value)
    assert torch.equal(kv.pages, alone.pages)
    assert (pool[:, : width + 64] == 255).all()
    assert (pool[:, 2 * width + 64 :] == 255).all()
    past, query = torch.full((2,), 69, dtype=torch.int32), torch.randn(2, 1, 4, 32)
    assert torch.equal(
        ops.paged_attention(query, kv._replace(past_B=past), 0.2),
        ops.paged_attention(query, alone._replace(past_B=past), 0.2),
    )


def test_strided_inputs_are_as_good():
    key, value = (x.transpose(1, 2) for x in torch.randn(2, 2, 2, 40, 32))  # [B, G, S, C] in memory, as models have it
    query = torch.randn(2, 4, 40, 32).transpose(1, 2)
    past = torch.zeros(2, dtype=torch.int32)
    kv = filled_pages(key, value, past, "int8")
    assert torch.equal(kv.pages, filled_pages(key.contiguous(), value.contiguous(), past, "int8").pages)
    expected = ops.paged_attention(query.contiguous(), kv, 0.2)
    assert torch.equal(ops.paged_attention(query, kv, 0.2), expected)
    causal = torch.ones(40, 40, dtype=torch.bool).tril()
    for mask in (causal.expand(2, 4, 40, 40), torch.ones(40, 80, dtype=torch.bool).tril()[None, None]):
        assert torch.equal(ops.paged_attention(query, kv, 0.2, ops.ScoreRules(mask=mask)), expected)
    wide = torch.cat((kv.table_BP, kv.table_BP), dim=1)[:, : kv.table_BP.shape[1]]
    assert torch.equal(ops.paged_attention(query, kv._replace(table_BP=wide), 0.2), expected)


@pytest.mark.parametrize(("batch", "tokens", "heads"), [(0, 3, 4), (2, 0, 4)])
def test_nothing_to_do(batch, tokens, heads):
    kv = empty_pages(max(batch, 1), 40, 2, 32, "int8")
    kv = kv._replace(table_BP=kv.table_BP[:batch], past_B=kv.past_B[:batch])
    before = kv.pages.clone()
    empty = torch.empty(batch, tokens, 2, 32)
    ops.kv_append(kv, empty, empty)
    assert torch.equal(kv.pages, before)
    assert ops.paged_attention(torch.empty(batch, tokens, heads, 32), kv, 0.2).shape == (batch, tokens, heads, 32)
    assert ops.kv_gather(kv, 0, 32)[0].shape == (batch, 2, 0, 32)
    assert ops.slim_attention(torch.empty(batch, tokens, heads, 32), empty, empty, 0.2).shape[1] == tokens


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_read_behind_a_tensor(format):
    """Every input ends at a closed page: the query, the pool's last page, its table, the mask."""
    key, value = tokens_of(2, 75, 2, 48)
    query, mask = torch.randn(2, 11, 6, 48), torch.rand(2, 6, 11, 75) < 0.5
    kv = filled_pages(guarded(key), guarded(value), torch.full((2,), 64), format)
    expected = ops.paged_attention(query, kv, 0.2, ops.ScoreRules(mask=mask))
    closed = kv._replace(
        pages=guarded(kv.pages[:-1]), table_BP=guarded(kv.table_BP), past_B=guarded(kv.past_B)
    )  # pages[-1] is a spare one
    assert torch.equal(ops.paged_attention(guarded(query), closed, 0.2, ops.ScoreRules(mask=guarded(mask))), expected)
    ops.kv_append(closed._replace(past_B=torch.zeros(2, dtype=torch.int32)), guarded(key), guarded(value))
    for left, right in zip(ops.kv_gather(closed, 75, 48), ops.kv_gather(kv, 75, 48), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("format", FORMATS)
def test_bits_for_any_batch_block_and_team(format):
    """One row alone, in a block, in a batch, with the tokens split between threads or not: the same bits."""
    key, value = tokens_of(2, 700, 1, 64)
    query = torch.randn(2, 60, 3, 64)
    past = torch.full((2,), 640)
    torch.set_num_threads(1)
    expected = ops.paged_attention(query, filled_pages(key, value, past, format), 0.125)
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        assert torch.equal(ops.paged_attention(query, filled_pages(key, value, past, format), 0.125), expected)
        for row in (0, 17, 59):
            one = filled_pages(key[1:], value[1:], torch.tensor([640 + row]), format)
            assert torch.equal(ops.paged_attention(query[1:, row : row + 1], one, 0.125), expected[1:, row : row + 1])


@pytest.mark.parametrize("inputs", HARD)
@pytest.mark.parametrize("format", FORMATS)
def test_hard_numbers(inputs, format):
    key, value = (HARD[inputs](x) for x in tokens_of(2, 40, 2, 32))
    query, past = torch.randn(2, 3, 4, 32), torch.full((2,), 37)
    kv = filled_pages(key, value, past, format)
    for have, want in zip(ops.kv_gather(kv, 40, 32), (key, value), strict=True):
        assert torch.equal(have.transpose(1, 2), reference.round_kv(want, format))
    compare(ops.paged_attention(query, kv, 0.2), (query, key, value), past, None, (0.2, 0.0), format)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_query_row_stays_alone(bad):
    key, value = tokens_of(2, 60, 1, 32)
    query = torch.randn(2, 20, 4, 32)
    kv = filled_pages(key, value, torch.full((2,), 40), "int8")
    clean = ops.paged_attention(query, kv, 0.2)
    query[1, 7, 2, 5] = bad
    got = ops.paged_attention(query, kv, 0.2)
    assert got[1, 7, 2].isnan().all()
    got[1, 7, 2] = clean[1, 7, 2]
    assert torch.equal(got, clean)


def test_scores_of_minus_infinity_are_not_a_masked_row():
    """Seen tokens that all score -inf (an Inf in the query, or an overflow) have no softmax: NaN, and not zeros."""
    key, value = tokens_of(1, 40, 1, 32)
    query = torch.randn(1, 1, 2, 32)
    query[0, 0, 1, 0] = float("-inf")
    got = ops.paged_attention(query, filled_pages(key.abs(), value, torch.tensor([39]), "f32"), 0.2)
    assert got[0, 0, 0].isfinite().all()
    assert got[0, 0, 1].isnan().all()


@pytest.mark.parametrize("threads", [1, 4])
def test_a_bad_token_of_one_sequence_does_not_reach_another(threads):
    torch.set_num_threads(threads)  # one KV head: split between four threads
    key, value = tokens_of(2, 600, 1, 32)
    value[0, 300] = float("nan")
    query, past = torch.randn(2, 1, 4, 32), torch.full((2,), 599)
    got = ops.paged_attention(query, filled_pages(key, value, past, "int8"), 0.2)
    compare(got, (query, key, value), past, None, (0.2, 0.0), "int8")
    assert got[0].isnan().all()
    assert got[1].isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("format", FORMATS)
def test_a_bad_token_is_seen_only_by_who_attends_to_it(bad, format):
    key, value = tokens_of(1, 80, 1, 32)
    query = torch.randn(1, 80, 2, 32)
    past = torch.zeros(1, dtype=torch.int32)
    clean = ops.paged_attention(query, filled_pages(key, value, past, format), 0.2)
    for spoilt in (key, value):
        kept = spoilt[0, 50].clone()
        spoilt[0, 50, 0, 3] = bad
        got = ops.paged_attention(query, filled_pages(key, value, past, format), 0.2)
        assert torch.equal(got[:, :50], clean[:, :50])
        assert got[:, 50:].isnan().all()
        hidden = torch.ones(1, 1, 80, 80, dtype=torch.bool).tril()
        hidden[..., 50] = False
        masked = ops.paged_attention(query, filled_pages(key, value, past, format), 0.2, ops.ScoreRules(mask=hidden))
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
    got = ops.slim_attention(query, key, value, 0.125, ops.ScoreRules(soft_cap=4.0))
    compare(got, (query, key, value), torch.full((2,), 40), None, (0.125, 4.0), "f32")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_tensors(dtype):
    key, value = (x.to(dtype) for x in tokens_of(1, 20, 2, 32))
    query = torch.randn(1, 3, 4, 32).to(dtype)
    kv = filled_pages(key, value, torch.tensor([17]), "int8")
    assert torch.equal(kv.pages, filled_pages(key.float(), value.float(), torch.tensor([17]), "int8").pages)
    got = ops.paged_attention(query, kv, 0.2)
    assert got.dtype == dtype
    assert torch.equal(got, ops.paged_attention(query.float(), kv, 0.2).to(dtype))
