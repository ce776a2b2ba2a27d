"""Attention with shapes, rules, bytes and threads drawn at random. `make fuzz` runs it under the sanitizers."""

from dataclasses import replace

import torch
from hypothesis import strategies as st

from torch_cpullm.ops import attention as ops
from torch_cpullm.ops.attention import ScoreRules
from torch_cpullm.testing.fuzz import fuzz
from torch_cpullm.testing.guard import guarded
from torch_cpullm.testing.pages import empty_pages

SPREADS = [0.0, 1.0, 3.0]  # exponents of the magnitudes: all alike, or over decades
RULES = ["causal", "window", "mask", "bias", "tree"]


def values(shape, spread, generator):
    x = torch.randn(shape, generator=generator)
    return x * torch.exp(torch.randn(shape, generator=generator) * spread)


@st.composite
def problems(draw):
    return {
        "past": draw(st.lists(st.one_of(st.integers(0, 130), st.integers(0, 700)), min_size=1, max_size=3)),
        "tokens": draw(st.one_of(st.integers(1, 20), st.integers(1, 64))),
        "kv_heads": draw(st.integers(1, 3)),
        "group": draw(st.integers(1, 7)),
        "channels": 16 * draw(st.integers(1, 9)),
        "format": draw(st.sampled_from(["f32", "bf16", "int8"])),
        "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        "rule": draw(st.sampled_from(RULES)),
        "window": draw(st.integers(1, 300)),
        "sinks": draw(st.booleans()),
        "slopes": draw(st.booleans()),
        "soft_cap": draw(st.sampled_from([0.0, 0.0, 5.0])),
        "spread": draw(st.sampled_from(SPREADS)),
        "bad": draw(st.sampled_from([None, None, None, float("nan"), float("inf")])),
        "threads": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 2**31)),
    }


def rules_of(problem, generator):
    batch, tokens, heads = len(problem["past"]), problem["tokens"], problem["kv_heads"] * problem["group"]
    length = max(problem["past"]) + tokens
    rules = ScoreRules(soft_cap=problem["soft_cap"])
    if problem["sinks"]:
        rules = replace(rules, sinks_H=guarded(3 * torch.randn(heads, generator=generator)))
    if problem["slopes"] and problem["rule"] != "tree":
        rules = replace(rules, slopes_H=guarded(torch.rand(heads, generator=generator) / 8))
    if problem["rule"] == "window":
        return replace(rules, window=problem["window"])
    if problem["rule"] == "tree":
        bits = torch.randint(-(2**62), 2**62, (batch, tokens), generator=generator)
        return replace(rules, tree_BT=guarded(bits))
    hidden = torch.rand(batch, 1, tokens, length, generator=generator) < 0.4
    if problem["rule"] == "mask":
        return replace(rules, mask=guarded(~hidden))
    if problem["rule"] == "bias":
        bias = torch.randn(batch, heads, tokens, length, generator=generator)
        return replace(rules, mask=guarded(bias.masked_fill(hidden, float("-inf"))))
    return rules


def cached(problem, key, value):
    """Pages with each sequence's own length, poison behind it; closed behind the last one."""
    kv = empty_pages(*key.shape, problem["format"])
    for b, past in enumerate(problem["past"]):
        one = kv._replace(table_BP=kv.table_BP[b : b + 1], past_B=torch.zeros(1, dtype=torch.int32))
        length = past + problem["tokens"]
        ops.kv_append(one, guarded(key[b : b + 1, :length]), guarded(value[b : b + 1, :length]))
    past_B = torch.tensor(problem["past"], dtype=torch.int32)
    return kv._replace(pages=guarded(kv.pages[:-1]), past_B=past_B)  # the last page is a spare


def one_row(rules, b, t):
    """The rules of a call with query token t of sequence b alone."""
    mask = rules.mask if rules.mask is None else rules.mask[b : b + 1, :, t : t + 1]
    return replace(rules, mask=mask)


def same_bits(x, y):
    """Equal, NaN as well. Below 1e-24 is what weights 2^-80 times the largest leave (kernels/attention/README.md)."""
    x, y = (z.float().masked_fill(z.abs().float() < 1e-24, 0.0) for z in (x, y))
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())


def run(problem):
    generator = torch.Generator().manual_seed(problem["seed"])
    batch, tokens, kv_heads = len(problem["past"]), problem["tokens"], problem["kv_heads"]
    length, channels = max(problem["past"]) + tokens, problem["channels"]
    torch.set_num_threads(problem["threads"])
    key, value = (values((batch, length, kv_heads, channels), problem["spread"], generator) for _ in range(2))
    spoilt = int(torch.randint(0, length, (), generator=generator))
    if problem["bad"] is not None:
        value[0, spoilt, 0, -1] = problem["bad"]
    kv, rules = cached(problem, key, value), rules_of(problem, generator)
    query = values((batch, tokens, kv_heads * problem["group"], channels), problem["spread"], generator)
    query = guarded(query.to(problem["dtype"]))
    found = []
    for slim in (0, 1 << 30, length // 2):
        ops.set_slim_tokens(slim)
        found.append(ops.paged_attention(query, kv, channels**-0.5, rules))
    assert found[0].shape == query.shape
    assert same_bits(found[0], found[1])
    assert same_bits(found[0], found[2])
    if problem["bad"] is None and problem["dtype"] != torch.float16:
        assert found[0].isfinite().all()
    ops.set_slim_tokens(0)
    torch.set_num_threads(1)
    for b, t in {(0, 0), (batch - 1, tokens - 1)}:
        if rules.tree_BT is not None or (rules.mask is not None and t < tokens - 1):
            continue  # other tokens of the call are seen: not a call of its own
        alone = kv._replace(
            table_BP=kv.table_BP[b : b + 1],
            past_B=torch.tensor([problem["past"][b] + t], dtype=torch.int32),
        )
        got = ops.paged_attention(query[b : b + 1, t : t + 1], alone, channels**-0.5, one_row(rules, b, t))
        assert same_bits(got[0, 0], found[0][b, t])


def test_fuzz_attention(request):
    before = ops.slim_tokens()
    try:
        fuzz(problems(), run, request.config.getoption("--fuzz-cases"))
    finally:
        ops.set_slim_tokens(before)
