"""Every decoding mode gives what the unoptimised model gives (float32, nothing rounded: only the kernels differ)."""

import copy

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import torch_cpullm
from torch_cpullm.kv import PagedCache
from torch_cpullm.modules import notice
from torch_cpullm.modules.notice import FallbackWarning
from torch_cpullm.ops.attention import PAGE_TOKENS

NEW = {"max_new_tokens": 24, "min_new_tokens": 24}
GREEDY = {**NEW, "do_sample": False}


@pytest.fixture(scope="module")
def one(tokenizer):
    return dict(tokenizer("import os\n\ndef walk(path):\n", return_tensors="pt"))


@pytest.fixture(scope="module")
def padded(tokenizer):
    return dict(tokenizer(["import os\n\ndef walk(path):\n", "class A:\n"], return_tensors="pt", padding=True))


@pytest.fixture(scope="module")
def assistant(stock):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, num_key_value_heads=1, **sizes)).eval()
    model.generation_config = copy.deepcopy(stock.generation_config)
    return model


def same(stock, ours, call):
    results = []
    for model in (stock, ours):
        torch.manual_seed(3)
        results.append(call(model))
    assert torch.equal(*results)


MODES = {
    "greedy": GREEDY,
    "sample": {**NEW, "do_sample": True, "top_k": 20},
    "beam 4": {**GREEDY, "num_beams": 4},
    "beam sample": {**NEW, "do_sample": True, "num_beams": 4, "num_return_sequences": 2},
    "num_return_sequences": {**NEW, "do_sample": True, "num_return_sequences": 3},
    "chunked prefill": {**GREEDY, "prefill_chunk_size": 3},
    "use_cache=False": {**GREEDY, "use_cache": False},
    "processors": {**GREEDY, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
}


@pytest.mark.parametrize("prompt", ["one", "padded"])
@pytest.mark.parametrize("mode", MODES)
def test_mode(mode, prompt, stock, ours, request):
    inputs = request.getfixturevalue(prompt)
    same(stock, ours, lambda model: model.generate(**inputs, **MODES[mode]))


def test_prompt_lookup(stock, ours, one):
    same(stock, ours, lambda model: model.generate(**one, **GREEDY, prompt_lookup_num_tokens=4))


def test_assisted(stock, ours, one, assistant):
    same(stock, ours, lambda model: model.generate(**one, **GREEDY, assistant_model=assistant))
    quick = torch_cpullm.optimize(copy.deepcopy(assistant), "keep", "keep")
    same(stock, ours, lambda model: model.generate(**one, **GREEDY, assistant_model=quick))


def test_continue_from_past_key_values(stock, ours, one):
    def twice(model):
        first = model.generate(**one, **GREEDY, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, one["input_ids"]], dim=1)
        past = first.past_key_values
        return model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=past, **GREEDY)

    same(stock, ours, twice)


def test_one_prefix_for_many(stock, ours, one):
    """A cached prefix, deep-copied for each continuation, as users do."""

    def forks(model):
        with torch.no_grad():
            prefix = model(**one, use_cache=True).past_key_values
        continued = []
        for token in (5, 900):
            ids = torch.cat([one["input_ids"], torch.tensor([[token]])], dim=1)
            past = copy.deepcopy(prefix)
            continued.append(model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=past, **GREEDY))
        return torch.cat(continued)

    same(stock, ours, forks)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_users_own_cache_keeps_working(cache, stock, ours, one, monkeypatch):
    monkeypatch.setattr(notice, "_said", set())

    def call(model):
        if cache == "dynamic":
            return model.generate(**one, **GREEDY, past_key_values=DynamicCache())
        return model.generate(**one, **GREEDY, cache_implementation="static")

    with pytest.warns(FallbackWarning, match="past_key_values is a"):
        same(stock, ours, call)


def test_output_attentions_falls_back_and_says_so(stock, ours, one, monkeypatch):
    monkeypatch.setattr(notice, "_said", set())
    stock.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            expected = stock(**one, output_attentions=True)
            with pytest.warns(FallbackWarning, match="output_attentions"):
                got = ours(**one, output_attentions=True)
    finally:
        stock.set_attn_implementation("sdpa")
    assert len(got.attentions) == 6
    # Other orders of summation through six layers; how many threads MKL has is enough to change them.
    assert torch.allclose(torch.stack(got.attentions), torch.stack(expected.attentions), atol=1e-4)
    assert torch.allclose(got.logits, expected.logits, atol=1e-3)


def test_output_hidden_states(stock, ours, one):
    with torch.no_grad():
        got, expected = (torch.stack(m(**one, output_hidden_states=True).hidden_states) for m in (ours, stock))
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 1e-3


def test_beams_share_pages(ours, one):
    ids = one["input_ids"].repeat(1, 40)
    arguments = {"max_new_tokens": 8, "num_beams": 4, "do_sample": False, "return_dict_in_generate": True}
    cache = ours.generate(ids, attention_mask=torch.ones_like(ids), **arguments).past_key_values
    assert isinstance(cache, PagedCache)
    alone = -(-cache.get_seq_length() // PAGE_TOKENS)
    assert cache.pool.used_pages <= alone + 4 + 4  # the common prompt once, and each beam's last page or two


def test_crop_frees_pages(ours, one):
    with torch.no_grad():
        ids = one["input_ids"].repeat(1, 40)
        cache = ours(ids, use_cache=True).past_key_values
        full = cache.pool.used_pages
        expected = ours(ids[:, :80]).logits[:, -1]
        cache.crop(-(ids.shape[1] - 79))
        assert cache.get_seq_length() == 79
        assert cache.pool.used_pages == 2 < full
        assert torch.equal(ours(ids[:, 79:80], past_key_values=cache).logits[:, -1], expected)
