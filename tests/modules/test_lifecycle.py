"""What else people do with models: threads, forks, copies, files, casts, second thoughts."""

import copy
import gc
import os
import pickle
import signal
import threading
import time
import weakref

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

import torch_cpullm
from torch_cpullm.errors import ConfigError, PackedWeightError, UnsupportedModelError
from torch_cpullm.kv import PagedCache
from torch_cpullm.modules import notice
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.modules.notice import FallbackWarning
from torch_cpullm.ops.linear import packed_info
from torch_cpullm.testing.models import WHOLE, bundled_model, tiny_model
from torch_cpullm.testing.outliers import plant_outliers

IDS = torch.arange(10, 40)[None]


def tokens(model, count=16):
    arguments = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
    return model.generate(IDS, attention_mask=torch.ones_like(IDS), **arguments)


@pytest.fixture
def int8():
    return torch_cpullm.optimize(bundled_model(torch.bfloat16))


@pytest.fixture(params=["plain", "with multipliers"])
def either(request):
    """Optimised, and the same where outlier channels were found and moved into the weights."""
    model = bundled_model(torch.bfloat16)
    optimized = torch_cpullm.optimize(plant_outliers(model) if request.param == "with multipliers" else model)
    found = packed_info(optimized.model.layers[0].mlp.gate_proj.packed).has_multiplier
    assert found == (request.param == "with multipliers")
    return optimized


def test_two_models_in_two_threads(int8):
    models = [int8, torch_cpullm.optimize(tiny_model(*WHOLE["qwen3"])), int8]
    inputs = [IDS, IDS, IDS + 7]
    arguments = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}

    def run(index):
        ids = inputs[index]
        return models[index].generate(ids, attention_mask=torch.ones_like(ids), **arguments)

    expected = [run(index) for index in range(3)]
    got = [None] * 3
    for _ in range(3):
        threads = [threading.Thread(target=lambda i=i: got.__setitem__(i, run(i))) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
        assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_after_optimize(either):
    """The child computes on one thread, since the OpenMP team did not survive, and gives the same tokens."""
    expected = tokens(either)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a hang must not outlive the test
        os.write(writer, b"1" if torch.equal(tokens(either), expected) else b"0")
        os._exit(0)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"1"
    finally:
        os.close(reader)
        os.waitpid(child, 0)


def test_casts_keep_the_packed_weights(int8):
    expected = tokens(int8)
    int8.to(torch.float32)
    assert int8.dtype == torch.float32
    assert int8.model.layers[0].self_attn.q_proj.weight.dtype == torch.float32
    tokens(int8)
    int8.to(torch.bfloat16)
    assert torch.equal(tokens(int8), expected)


def test_another_device_is_refused_before_anything_moves(int8):
    expected = tokens(int8)
    with pytest.raises(PackedWeightError, match=r"device: .*restore"):
        int8.to("meta")
    assert torch.equal(tokens(int8), expected)


def test_deepcopy_and_pickle(either):
    expected = tokens(either)
    clone = copy.deepcopy(either)
    again = pickle.loads(pickle.dumps(either))
    del either
    for model in (clone, again):
        assert torch.equal(tokens(model), expected)
        assert torch_cpullm.explain(model).swapped
        assert isinstance(model.lm_head, PackedLinear)
        assert model.model.embed_tokens.bytes is model.lm_head.packed
        assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_cache_refuses_to_be_pickled(int8):
    with torch.no_grad():
        cache = int8(IDS).past_key_values
    with pytest.raises(TypeError, match="PagedCache"):
        pickle.dumps(cache)


def test_save_pretrained_writes_an_ordinary_checkpoint(int8, tmp_path):
    int8.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert loaded.config._attn_implementation == "sdpa"
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, int8.state_dict()[name]), name
    with torch.no_grad():
        difference = (loaded(IDS).logits - int8(IDS).logits).float().norm() / int8(IDS).logits.float().norm()
    assert difference < 0.02


def test_state_dict_round_trip(int8):
    state = bundled_model(torch.bfloat16).state_dict()
    assert set(int8.state_dict()) == set(state)
    expected = tokens(int8)
    for parameter in int8.parameters():
        torch.nn.init.ones_(parameter)
    int8.model.layers[2].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(1024, 384))
    int8.model.embed_tokens.weight = torch.nn.Parameter(torch.randn(8192, 384))
    assert torch.equal(int8.model.embed_tokens.weight, int8.lm_head.weight)  # tied still
    assert not torch.equal(tokens(int8), expected)
    int8.load_state_dict(state)
    assert torch.equal(tokens(int8), expected)


def test_a_weight_of_another_shape_is_refused(int8):
    with pytest.raises(PackedWeightError, match=r"weight: expected shape \(1024, 384\)"):
        int8.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(4, 4))


def test_optimize_twice(int8):
    told = torch_cpullm.explain(int8)
    assert torch_cpullm.optimize(int8) is int8
    assert torch_cpullm.explain(int8) is told
    with pytest.warns(UserWarning, match="dequantised"):
        torch_cpullm.optimize(int8, kv_cache="bf16")
    assert any("KV cache: bf16" in note for note in torch_cpullm.explain(int8).notes)
    tokens(int8)


def test_a_module_is_of_its_own_class_again():
    """Falcon's linear layers are of a subclass."""
    stock = tiny_model(*WHOLE["falcon"])
    classes = [type(module) for module in stock.modules()]
    ours = torch_cpullm.optimize(copy.deepcopy(stock), "keep", "keep")
    assert all(isinstance(layer.mlp.dense_h_to_4h, PackedLinear) for layer in ours.transformer.h)
    back = torch_cpullm.restore(pickle.loads(pickle.dumps(ours)))
    assert [type(module) for module in back.modules()] == classes
    for one, other in zip(back.parameters(), stock.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("weights", ["keep", "bf16"])
def test_restore_is_exact_where_nothing_was_rounded(weights):
    stock = bundled_model(torch.bfloat16)
    model = torch_cpullm.restore(torch_cpullm.optimize(copy.deepcopy(stock), weights=weights))
    assert type(model) is type(stock)
    assert {type(module) for module in model.modules()} == {type(module) for module in stock.modules()}
    assert model.config._attn_implementation == "sdpa"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for (name, value), (other, expected) in zip(model.named_parameters(), stock.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(value, expected)
        assert value.requires_grad == expected.requires_grad
    assert torch.equal(tokens(model), tokens(stock))


def test_restore_says_that_int8_was_lossy(int8):
    with pytest.warns(UserWarning, match="dequantised int8 values"):
        torch_cpullm.restore(int8)
    with pytest.raises(UnsupportedModelError, match="not optimised"):
        torch_cpullm.explain(int8)
    assert torch_cpullm.restore(int8) is int8  # nothing left to do


def test_restore_says_that_bf16_was_lossy_for_float32():
    model = torch_cpullm.optimize(bundled_model(), weights="bf16")
    with pytest.warns(UserWarning, match="dequantised bf16 values"):
        torch_cpullm.restore(model)


def test_bad_arguments():
    model = tiny_model(*WHOLE["llama"])
    with pytest.raises(ConfigError, match=r"weights: expected one of 'int8', 'int4', 'bf16', 'keep', got 'int3'"):
        torch_cpullm.optimize(model, weights="int3")
    with pytest.raises(ConfigError, match="kv_cache"):
        torch_cpullm.optimize(model, kv_cache="fp8")
    with pytest.raises(ConfigError, match=r"group_size: expected one of None, 32, 64, 128 with weights='int4', got 0"):
        torch_cpullm.optimize(model, weights="int4", group_size=0)
    with pytest.raises(ConfigError, match=r"symmetric: expected one of True with weights='int8', got False"):
        torch_cpullm.optimize(model, symmetric=False)
    with pytest.raises(ConfigError, match=r"calibrated: expected one of False with weights='bf16'"):
        torch_cpullm.optimize(model, weights="bf16", calibration=["text"])
    with pytest.raises(ConfigError, match="attention"):
        torch_cpullm.optimize(model, attention="flash")
    with pytest.raises(UnsupportedModelError, match=r"model: expected a torch.nn.Module, got str"):
        torch_cpullm.optimize("llama")


@pytest.mark.parametrize(
    "choices",
    [
        {"attention": "keep"},
        {"check": False},
        {"lm_head": "keep"},
        {"weights": "bf16", "lm_head": "int8"},
        {"group_size": 32},
        {"activations": "bf16"},
        {"embeddings": "keep"},
    ],
)
def test_every_choice_works(choices):
    stock = bundled_model(torch.bfloat16)
    model = torch_cpullm.optimize(copy.deepcopy(stock), **choices)
    with torch.no_grad():
        expected = stock(IDS).logits.float()
        assert (model(IDS).logits.float() - expected).norm() / expected.norm() < 0.03
    tokens(model)
    if "lm_head" in choices:
        rows = {row.path: row.action for row in torch_cpullm.explain(model).swapped}
        assert rows["lm_head"] == {"keep": "bf16", "int8": "int8"}[choices["lm_head"]]


def test_float16_models_work():
    stock = bundled_model(torch.float16)
    model = torch_cpullm.optimize(copy.deepcopy(stock))
    with torch.no_grad():
        expected = stock(IDS).logits.float()
        assert (model(IDS).logits.float() - expected).norm() / expected.norm() < 0.03
    kept = torch_cpullm.optimize(copy.deepcopy(stock), weights="keep")
    assert "float16" in torch_cpullm.explain(kept).left_alone[0].reason
    assert torch.equal(tokens(kept), tokens(stock))


def test_an_outlier_layer_is_left_alone():
    """One weight so large that int8 would lose the rest of its row: the check keeps that layer as it was."""
    model = bundled_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[:, ::64] *= 1e4
        model.model.layers[1].mlp.down_proj.weight[:, 1::64] = 3.0
    expected = model.model.layers[1].mlp.down_proj.weight.clone()
    torch_cpullm.optimize(model)
    left = {row.path: row.reason for row in torch_cpullm.explain(model).left_alone}
    if "model.layers.1.mlp.down_proj" in left:
        assert torch.equal(model.model.layers[1].mlp.down_proj.weight, expected)
    tokens(model)


def test_the_cache_dies_with_its_last_user(int8):
    with torch.no_grad():
        cache = int8(IDS).past_key_values
    pool = weakref.ref(cache.pool)
    gc.disable()
    try:
        del cache
        assert pool() is None  # no circles: pages go back at once
    finally:
        gc.enable()


def calls_at_flat_memory(model, calls):
    process = psutil.Process()
    for _ in range(calls // 5):
        tokens(model, 3)
    before = process.memory_info().rss
    for _ in range(calls):
        tokens(model, 3)
    gc.collect()
    alive = sum(type(thing) is PagedCache for thing in gc.get_objects())
    return process.memory_info().rss - before, alive


def test_nothing_leaks(int8):
    grown, alive = calls_at_flat_memory(int8, 60)
    assert grown < 4 << 20
    assert alive == 0


@pytest.mark.slow
def test_nothing_leaks_in_a_thousand_calls(int8):
    start = time.perf_counter()
    grown, alive = calls_at_flat_memory(int8, 1000)
    assert grown < 8 << 20, f"{grown} bytes in {time.perf_counter() - start:.0f} s"
    assert alive == 0


class Adapter(torch.nn.Module):
    """What a LoRA does to a linear layer: it takes its place and adds something."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return self.base(x) + 0.5 * x.abs().mean(-1, keepdim=True)


@pytest.mark.parametrize(("parent", "name"), [("self_attn", "q_proj"), ("mlp", "down_proj")])
@torch.no_grad()
def test_a_module_put_in_place_of_a_packed_one_is_heard(parent, name, monkeypatch):
    stock, ours = bundled_model(), torch_cpullm.optimize(bundled_model(), weights="keep", kv_cache="keep")
    before = ours(IDS).logits
    for model in (stock, ours):
        module = getattr(model.model.layers[1], parent)
        setattr(module, name, Adapter(getattr(module, name)))
    monkeypatch.setattr(notice, "_said", set())
    with pytest.warns(FallbackWarning, match="was replaced"):
        after = ours(IDS).logits
    assert torch.allclose(after, stock(IDS).logits, atol=1e-3)
    assert not torch.allclose(after, before, atol=1e-2)
