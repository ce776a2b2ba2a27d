"""What changes a score or hides it: windows, biases, sinks, ALiBi, trees. And the two methods: the same bits."""

from dataclasses import replace

import pytest
import torch

from torch_cpullm.ops import attention as ops
from torch_cpullm.ops.attention import ScoreRules
from torch_cpullm.reference import attention as reference
from torch_cpullm.testing.pages import filled_pages
from torch_cpullm.testing.tolerances import assert_within, attention_bound

FORMATS = ["f32", "bf16", "int8"]
SCALE = 0.2


@pytest.fixture(params=["slim", "flash"], autouse=True)
def method(request):
    before = ops.slim_tokens()
    ops.set_slim_tokens({"slim": 1 << 30, "flash": 0}[request.param])
    yield request.param
    ops.set_slim_tokens(before)


def problem(format, past=290, tokens=20, heads=4, kv_heads=2, channels=48, batch=2):
    key, value = torch.randn(2, batch, past + tokens, kv_heads, channels)
    query = torch.randn(batch, tokens, heads, channels)
    return (query, key, value), filled_pages(key, value, torch.full((batch,), past), format)


def check(inputs, kv, rules, seen_BHTS, bias_BHTS=None):
    key, value = (reference.round_kv(x, kv.format) for x in inputs[1:])
    problem = reference.AttentionInputs(
        inputs[0], key, value, seen_BHTS, SCALE, rules.soft_cap, bias_BHTS, rules.sinks_H
    )
    got = ops.paged_attention(inputs[0], kv, SCALE, rules)
    assert_within(got, reference.attention(problem), attention_bound(problem, kv.format))
    return got


def causal(kv, tokens, length):
    return reference.visible(kv.past_B, tokens, length, None)


def distance(past, tokens):
    """Of each cached token from each query's own, [T, S]: 0 for itself, negative before."""
    return torch.arange(past + tokens)[None] - (past + torch.arange(tokens))[:, None]


@pytest.mark.parametrize("window", [1, 7, 63, 64, 65, 200, 1000])
@pytest.mark.parametrize("format", FORMATS)
def test_window(format, window):
    inputs, kv = problem(format)
    seen = causal(kv, 20, 310) & (distance(290, 20) > -window)
    check(inputs, kv, ScoreRules(window=window), seen)


@pytest.mark.parametrize("format", FORMATS)
def test_a_window_is_a_mask(format):
    inputs, kv = problem(format)
    mask = causal(kv, 20, 310) & (distance(290, 20) > -70)
    by_window = ops.paged_attention(inputs[0], kv, SCALE, ScoreRules(window=70))
    assert torch.equal(by_window, ops.paged_attention(inputs[0], kv, SCALE, ScoreRules(mask=mask)))


@pytest.mark.parametrize("soft_cap", [0.0, 2.0])
@pytest.mark.parametrize("format", FORMATS)
def test_bias(format, soft_cap):
    inputs, kv = problem(format)
    bias = 3 * torch.randn(2, 4, 20, 310)
    bias[:, :, :, :40] = float("-inf")
    bias[0, 1, 3] = float("-inf")
    bias[1, :, 5, 100:] = torch.finfo(torch.float32).min  # as transformers hides
    seen = bias > -1e38
    got = check(inputs, kv, ScoreRules(mask=bias, soft_cap=soft_cap), seen, bias.masked_fill(~seen, 0.0))
    assert not got[0, 3, 1].any()


@pytest.mark.parametrize("hides", [float("-inf"), torch.finfo(torch.float32).min])
@pytest.mark.parametrize("format", FORMATS)
def test_what_a_bias_hides_spoils_nothing(format, hides):
    (query, key, value), kv = problem(format)
    bias = torch.zeros(2, 1, 20, 310)
    bias[..., 100] = hides
    clean = ops.paged_attention(query, kv, SCALE, ScoreRules(mask=bias))
    for spoilt in (key, value):
        spoilt[:, 100, :, 3] = float("nan")
        kv = filled_pages(key, value, kv.past_B, format)
        assert torch.equal(ops.paged_attention(query, kv, SCALE, ScoreRules(mask=bias)), clean)


@pytest.mark.parametrize("format", FORMATS)
def test_sinks(format):
    inputs, kv = problem(format)
    rules = ScoreRules(sinks_H=torch.tensor([-30.0, 0.0, 1.5, 40.0]))
    got = check(inputs, kv, rules, causal(kv, 20, 310))
    assert got[:, :, 3].abs().max() < 1e-10  # a sink that takes all
    nothing = torch.zeros(1, 1, 20, 310, dtype=torch.bool)
    assert not ops.paged_attention(inputs[0], kv, SCALE, replace(rules, mask=nothing)).any()


@pytest.mark.parametrize("format", FORMATS)
def test_alibi(format):
    inputs, kv = problem(format)
    slopes = torch.tensor([0.5, 0.0625, 0.0, 0.004])
    bias = slopes[:, None, None] * distance(290, 20)
    check(inputs, kv, ScoreRules(slopes_H=slopes), causal(kv, 20, 310), bias[None].expand(2, -1, -1, -1))


def tree_of(batch, tokens, generator):
    """Ancestors (and itself) of each node of random trees, as bits."""
    bits = torch.zeros(batch, tokens, dtype=torch.int64)
    for b in range(batch):
        for node in range(tokens):
            parent = int(torch.randint(-1, node, (), generator=generator)) if node else -1
            above = int(bits[b, parent]) if parent >= 0 else 0
            mine = above | 1 << node
            bits[b, node] = mine - (1 << 64) if mine >> 63 else mine
    return bits


@pytest.mark.parametrize("past", [0, 30, 64, 250, 400])
@pytest.mark.parametrize("tokens", [1, 2, 13, 63, 64])
def test_tree(past, tokens):
    inputs, kv = problem("int8", past, tokens)
    bits = tree_of(2, tokens, torch.Generator().manual_seed(tokens))
    own = (bits[:, :, None] >> torch.arange(tokens)) & 1
    seen = torch.cat([torch.ones(2, tokens, past, dtype=torch.bool), own.bool()], dim=-1)[:, None]
    got = check(inputs, kv, ScoreRules(tree_BT=bits), seen)
    assert torch.equal(got, ops.paged_attention(inputs[0], kv, SCALE, ScoreRules(mask=seen)))


def test_a_chain_is_causal():
    inputs, kv = problem("int8")
    chain = torch.tensor([[(2 << t) - 1 for t in range(20)]] * 2)
    assert torch.equal(
        ops.paged_attention(inputs[0], kv, SCALE, ScoreRules(tree_BT=chain)), ops.paged_attention(inputs[0], kv, SCALE)
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("format", FORMATS)
def test_methods_threads_and_blocks_change_no_bit(format, threads):
    """All rows at once, or one after the other as decoding has them; slim, flash and any number of threads."""
    torch.set_num_threads(threads)
    for heads, kv_heads in ((4, 4), (6, 1)):
        inputs, kv = problem(format, 500, 300, heads, kv_heads, 32, batch=1)
        ops.set_slim_tokens(0)
        expected = ops.paged_attention(inputs[0], kv, SCALE)
        for slim in (1 << 30, 600):
            ops.set_slim_tokens(slim)
            assert torch.equal(ops.paged_attention(inputs[0], kv, SCALE), expected)
        for row in (0, 12, 11, 255, 299):
            kv_then = kv._replace(past_B=torch.tensor([500 + row], dtype=torch.int32))
            one = ops.paged_attention(inputs[0][:, row : row + 1], kv_then, SCALE)
            assert torch.equal(one, expected[:, row : row + 1])


def test_scores_far_apart_change_no_bit():
    """Shifts are powers of two: a later and far larger maximum rescales exactly what the first chunks left."""
    (query, key, value), _ = problem("int8", 1500, 3, 4, 2, 32, 1)
    key[:, 300:400] *= 8
    key[:, 1100:1200] *= 40
    kv = filled_pages(key, value, torch.tensor([1500]), "int8")
    ops.set_slim_tokens(0)
    flash = ops.paged_attention(query, kv, SCALE)
    ops.set_slim_tokens(1 << 30)
    assert torch.equal(ops.paged_attention(query, kv, SCALE), flash)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"window": -1}, "window: expected 0"),
        ({"sinks_H": torch.zeros(3)}, "sinks"),
        ({"slopes_H": torch.zeros(4, 1)}, "slopes"),
        ({"tree_BT": torch.zeros(2, 19, dtype=torch.int64)}, "tree"),
        ({"tree_BT": torch.zeros(2, 20, dtype=torch.int32)}, "tree"),
        ({"tree_BT": torch.zeros(2, 20, dtype=torch.int64), "window": 3}, "tree: expected neither"),
        ({"mask": torch.zeros(1, 1, 20, 310, dtype=torch.float64)}, "mask: expected bool, or float32"),
        ({"mask": torch.zeros(1, 1, 20, 309)}, "mask: expected"),
    ],
)
def test_bad_rules_are_named(rules, message):
    inputs, kv = problem("int8")
    with pytest.raises((ValueError, TypeError), match=message):
        ops.paged_attention(inputs[0], kv, SCALE, ScoreRules(**rules))


def test_a_tree_has_64_nodes_at_most():
    inputs, kv = problem("int8", 0, 65)
    with pytest.raises(ValueError, match="tree: expected at most 64"):
        ops.paged_attention(inputs[0], kv, SCALE, ScoreRules(tree_BT=torch.zeros(2, 65, dtype=torch.int64)))


def test_slim_attention_takes_no_tree():
    query, key, value = problem("f32")[0]
    with pytest.raises(ValueError, match="takes no tree"):
        ops.slim_attention(query, key, value, SCALE, ScoreRules(tree_BT=torch.zeros(2, 20, dtype=torch.int64)))


def test_a_number_of_tokens_is_not_negative():
    with pytest.raises(ValueError, match="tokens: expected 0"):
        ops.set_slim_tokens(-1)
