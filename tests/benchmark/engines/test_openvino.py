"""The graph computes what transformers does, the plugin fuses it, and the engine's contexts grow, shrink and batch."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from torch_cpullm.benchmark.engines.engine import MissingEngineError
from torch_cpullm.benchmark.engines.openvino import OpenVino

ov = pytest.importorskip("openvino")
Weights = pytest.importorskip("torch_cpullm.benchmark.engines.openvino_weights").Weights

TINY = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,  # logits far enough apart for u8 caches and bf16 sums not to swap the first two
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "llama-2": LlamaConfig(**TINY | {"num_key_value_heads": 8}, tie_word_embeddings=False),
    "llama": LlamaConfig(**TINY, rope_parameters=LLAMA3, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**TINY, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**TINY, head_dim=64, tie_word_embeddings=True),
}
PROMPT = np.random.default_rng(5).integers(0, 512, (3, 70))  # three pages of 32 tokens, the last one in part


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Random weights, biases and gains not left at zeros and ones: those would hide a lost one."""
    folders = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        folders[name] = tmp_path_factory.mktemp("checkpoints") / name
        model.save_pretrained(folders[name], max_shard_size="500KB" if name == "qwen2" else "5GB")
    return folders


def reference(checkpoint, ids_BT):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(ids_BT)).logits.numpy()


def compiled(checkpoint, format, **settings):
    return ov.Core().compile_model(OpenVino.prepare(checkpoint, format) / "openvino_model.xml", "CPU", settings)


def logits(model):
    B, T = PROMPT.shape
    inputs = {
        "input_ids": PROMPT,
        "attention_mask": np.ones((B, T), np.int64),
        "position_ids": np.tile(np.arange(T), (B, 1)),
        "beam_idx": np.arange(B, dtype=np.int32),
    }
    return model(inputs)["logits"]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_graph_is_exact(checkpoints, name):
    computed_BTV = logits(compiled(checkpoints[name], "BF16", INFERENCE_PRECISION_HINT="f32", KV_CACHE_PRECISION="f32"))
    # 2e-5 as a rule, 3e-3 once in 100 processes: torch's first cos there is off by 1.5e-4. Logits reach 8.
    np.testing.assert_allclose(computed_BTV, reference(checkpoints[name], PROMPT), rtol=0, atol=0.01)


# Rounding these weights alone, float32 throughout, leaves 0.9988 (INT8) and 0.862 (INT4): normal numbers, two layers.
@pytest.mark.parametrize(("format", "correlation"), [("BF16", 0.9995), ("INT8", 0.998), ("INT4", 0.85)])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_with_the_settings_of_users(checkpoints, name, format, correlation):
    computed_BTV = logits(compiled(checkpoints[name], format))
    assert np.corrcoef(computed_BTV.ravel(), reference(checkpoints[name], PROMPT).ravel())[0, 1] > correlation


@pytest.mark.parametrize(
    ("format", "coarse", "top", "group"), [("INT8", True, 255, 256), ("INT4", True, 15, 128), ("INT4", False, 255, 256)]
)
def test_weights_are_off_by_half_a_step(checkpoints, format, coarse, top, group):
    name = "model.layers.1.self_attn.q_proj.weight"
    weights = Weights(checkpoints["llama"], format)
    model = ov.Model([weights.matrix(name, coarse)], [])
    stored = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0].reshape(-1, group)
    original = load_file(checkpoints["llama"] / "model.safetensors")[name].float().numpy().reshape(-1, group)
    step = np.ptp(original, axis=-1, keepdims=True) / top
    assert (np.abs(stored - original) < 0.63 * step).all()  # half a step, and at the ends f16 scales: 255 * 2^-11


@pytest.mark.parametrize("name", CONFIGS)
def test_the_plugin_fuses_the_patterns(checkpoints, name):
    layers = TINY["num_hidden_layers"]
    stateful = compiled(checkpoints[name], "INT4")
    paged = OpenVino(OpenVino.prepare(checkpoints[name], "INT4"), "INT4", threads=1, batch=1, context=32)
    for model, attention in (
        (stateful, "ScaledDotProductAttention"),
        (paged._request.get_compiled_model(), "PagedAttention"),
    ):
        kinds = [node.get_rt_info()["layerType"].astype(str) for node in model.get_runtime_model().get_ops()]
        assert kinds.count(attention) == layers
        assert kinds.count("RoPE") == 2 * layers
        assert kinds.count("RMS") == (4 if name == "qwen3" else 2) * layers + 1
        assert kinds.count("FullyConnected") == 7 * layers + 1
        assert kinds.count("MatMul") == 1  # the angles of rope
        assert kinds.count("Eltwise") <= 3 * layers + 4  # the sums of the residuals, gate times up, and the mask


@pytest.mark.parametrize("format", ["BF16", "INT8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_are_transformers(checkpoints, name, format):
    engine = OpenVino(OpenVino.prepare(checkpoints[name], format), format, threads=1, batch=3, context=128)
    first_B = engine.extend(PROMPT)
    assert engine.length == 70
    times, found_BT = engine.decode(5)
    assert engine.length == 75
    assert times == sorted(times)
    assert len(times) == 5
    ids_BT = np.concatenate([PROMPT, first_B[:, None], found_BT], 1)
    logits_BTV = reference(checkpoints[name], ids_BT)[:, 69:-1]
    chosen_BT = np.take_along_axis(logits_BTV, ids_BT[:, 70:, None], -1)[..., 0]
    assert (logits_BTV.max(-1) - chosen_BT).max() < 0.1 * logits_BTV.std()


def test_contexts_grow_shrink_and_start_again(checkpoints):
    engine = OpenVino(OpenVino.prepare(checkpoints["llama"], "INT8"), "INT8", threads=1, batch=3, context=128)
    whole_B = engine.extend(PROMPT)
    _, decoded_BT = engine.decode(8)
    engine.crop(40)
    assert engine.length == 40
    assert (engine.extend(PROMPT[:, 40:]) == whole_B).all()
    assert (engine.decode(8)[1] == decoded_BT).all()
    engine.reset(1)
    assert engine.length == 0
    engine.extend(PROMPT[1:2, :33])
    assert (engine.extend(PROMPT[1:2, 33:]) == whole_B[1:2]).all()
    assert (engine.decode(8)[1] == decoded_BT[1:2]).all()


def test_no_more_tokens_than_there_are_pages(checkpoints):
    engine = OpenVino(OpenVino.prepare(checkpoints["llama"], "INT8"), "INT8", threads=1, batch=1, context=64)
    with pytest.raises(ValueError, match="1 sequences would hold 70 tokens; 1 of 64 fit"):
        engine.extend(PROMPT[:1])


def test_an_unknown_architecture_is_missing(tmp_path):
    checkpoint = tmp_path / "gpt2"
    GPT2Config(n_layer=1).save_pretrained(checkpoint)
    with pytest.raises(MissingEngineError, match=r"no graph for 'gpt2'.*llama, qwen2, qwen3"):
        OpenVino.prepare(checkpoint, "INT8")
    assert [path.name for path in tmp_path.iterdir()] == ["gpt2"]


def test_without_openvino_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "torch_cpullm.benchmark.engines.openvino_graph")
    with pytest.raises(MissingEngineError, match="pip install openvino"):
        OpenVino.prepare(tmp_path / "model", "INT8")
