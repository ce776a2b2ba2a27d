"""llama.cpp computes from our GGUF files what transformers computes from the checkpoint; the engine keeps its word."""

import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from torch_cpullm.benchmark import shapes
from torch_cpullm.benchmark.engines import llama_cpp as engine_file
from torch_cpullm.benchmark.engines.engine import MissingEngineError
from torch_cpullm.benchmark.engines.gguf_file import write_gguf
from torch_cpullm.benchmark.engines.llama_cpp import LlamaCpp

SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
MODELS = {
    "llama, untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama, llama3 rope, tied": LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3),
    "llama, biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "qwen2, tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3, wide heads": Qwen3Config(**SIZES, head_dim=96, tie_word_embeddings=False),
}


def save(config, folder, **how):
    """Save random weights of which each matters: gains other than one, attention and its biases far from uniform."""
    model = shapes.fill(shapes.meta_model(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif ".q_proj." in name or ".k_proj." in name:
                parameter.mul_(30 if name.endswith(".bias") else 2)
    model.save_pretrained(folder, **how)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def prompts(batch, tokens, seed=0):
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (batch, tokens))


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("models") / "tiny"
    stock = save(MODELS[request.param], folder)
    return stock, LlamaCpp(LlamaCpp.prepare(folder, "BF16"), "BF16", threads=1, batch=3, context=400)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A sharded checkpoint."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-1.0"
    save(MODELS["llama, llama3 rope, tied"], folder, max_shard_size="700KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def engine(checkpoint):
    return LlamaCpp(LlamaCpp.prepare(checkpoint, "BF16"), "BF16", threads=1, batch=3, context=400)


def tensor_types(path):
    gguf = pytest.importorskip("gguf")
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def correlation(left, right):
    return np.corrcoef(left, right)[0, 1]


# A wrong order of the queries' rows or of their biases, or wrong frequencies, leave a correlation of 0.97 to 0.98; the
# products of bfloat16 leave 0.99999.
@torch.no_grad()
def test_logits_are_those_of_transformers(pair):
    stock, engine = pair
    ids_BT = prompts(1, 300)
    engine.reset(1)
    engine.extend(ids_BT)
    logits_V = stock(torch.from_numpy(ids_BT)).logits[0, -1].numpy()
    assert correlation(engine._logits(-1), logits_V) > 0.9999
    assert engine._logits(-1).std() == pytest.approx(logits_V.std(), rel=0.01)


@torch.no_grad()
def test_greedy_tokens_are_those_of_transformers(pair):
    stock, engine = pair
    ids_BT = prompts(3, 40)
    engine.reset(3)
    first_B = engine.extend(ids_BT)
    _, found_BT = engine.decode(16)
    whole_BT = np.concatenate([ids_BT, first_B[:, None], found_BT], axis=1)
    likeliest_BT = stock(torch.from_numpy(whole_BT)).logits.argmax(-1).numpy()
    assert np.mean(whole_BT[:, 40:] == likeliest_BT[:, 39:-1]) > 0.95


def test_decode_after_crop_repeats_itself(engine):
    ids_BT = prompts(3, 30)
    engine.reset(3)
    first_B = engine.extend(ids_BT)
    times, found_BT = engine.decode(8)
    assert (found_BT.shape, len(times), engine.length) == ((3, 8), 8, 38)
    assert times == sorted(times)
    engine.crop(29)
    assert engine.length == 29
    assert np.array_equal(engine.extend(ids_BT[:, 29:]), first_B)
    assert np.array_equal(engine.decode(8)[1], found_BT)


def test_crop_keeps_the_token_that_is_remembered(engine):
    ids_BT = prompts(1, 30)
    engine.reset(1)
    engine.extend(ids_BT)
    _, found_BT = engine.decode(4)
    engine.crop(30)
    _, other_BT = engine.decode(1)
    engine.reset(1)
    assert np.array_equal(engine.extend(np.concatenate([ids_BT, found_BT[:, -1:]], axis=1)), other_BT[:, 0])


def test_decode_continues_where_decode_stopped(engine):
    ids_BT = prompts(2, 30)
    engine.reset(2)
    engine.extend(ids_BT)
    whole_BT = engine.decode(8)[1]
    engine.reset(2)
    engine.extend(ids_BT)
    assert np.array_equal(np.concatenate([engine.decode(3)[1], engine.decode(5)[1]], axis=1), whole_BT)


def test_a_batch_is_its_sequences(engine):
    ids_BT = prompts(3, 30)
    engine.reset(3)
    first_B = engine.extend(ids_BT)
    _, found_BT = engine.decode(8)
    for sequence in range(3):
        engine.reset(1)
        assert engine.length == 0
        assert engine.extend(ids_BT[sequence : sequence + 1])[0] == first_B[sequence]
        assert np.array_equal(engine.decode(8)[1][0], found_BT[sequence])


def test_a_prompt_in_parts_is_the_whole(engine, monkeypatch):
    ids_BT = prompts(3, 200)
    engine.reset(3)
    whole_B = engine.extend(ids_BT)
    logits_V = engine._logits(-1).copy()
    engine.reset(3)
    engine.extend(ids_BT[:, :77])
    assert np.array_equal(engine.extend(ids_BT[:, 77:]), whole_B)
    assert correlation(engine._logits(-1), logits_V) > 0.9999
    monkeypatch.setattr(engine, "_piece", 128)
    engine.reset(3)
    assert np.array_equal(engine.extend(ids_BT), whole_B)
    assert correlation(engine._logits(-1), logits_V) > 0.9999


def test_a_sequence_holds_the_context_rounded_up_and_no_more(engine):
    engine.reset(3)
    engine.extend(prompts(3, 400))
    engine.extend(prompts(3, 110))
    with pytest.raises(RuntimeError, match="llama_decode returned 1 at 512 tokens"):
        engine.decode(3)


@pytest.mark.parametrize(
    ("format", "types", "bytes_per_weight", "least"),
    [
        ("BF16", {"F32", "BF16"}, 2, 1),
        ("Q8_0", {"F32", "Q8_0"}, 34 / 32, 0.999),
        ("Q4_0", {"F32", "Q4_0", "Q6_K"}, 18 / 32, 0.97),
        ("Q4_K_M", {"F32", "Q4_K", "Q6_K"}, 144 / 256, 0.97),
    ],
)
def test_formats(checkpoint, engine, format, types, bytes_per_weight, least):
    prepared = LlamaCpp.prepare(checkpoint, format)
    assert prepared.parent == checkpoint.parent
    assert set(tensor_types(prepared).values()) == types
    assert "output.weight" not in tensor_types(prepared)
    assert tensor_types(prepared)["blk.0.attn_norm.weight"] == tensor_types(prepared)["rope_freqs.weight"] == "F32"
    weights = sum(parameter.numel() for parameter in shapes.meta_model(shapes.config_of(str(checkpoint))).parameters())
    assert prepared.stat().st_size > weights * bytes_per_weight
    written = prepared.stat().st_mtime_ns
    assert LlamaCpp.prepare(checkpoint, format) == prepared
    assert prepared.stat().st_mtime_ns == written
    assert list(checkpoint.parent.glob("*.part")) == []
    ids_BT = prompts(1, 100)
    engine.reset(1)
    engine.extend(ids_BT)
    quantised = LlamaCpp(prepared, format, threads=2, batch=1, context=200)
    quantised.extend(ids_BT)
    assert correlation(quantised._logits(-1), engine._logits(-1)) >= least - 1e-6


def test_a_file_that_is_none(checkpoint):
    with pytest.raises(RuntimeError, match="does not load"):
        LlamaCpp(checkpoint / "config.json", "BF16", threads=1, batch=1, context=16)


REFUSED = {
    "none of llama, qwen2, qwen3": GPT2Config(),
    "rope type 'yarn'": Qwen2Config(**SIZES, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}),
    "silu there, not 'gelu'": LlamaConfig(**SIZES, hidden_act="gelu"),
    "sliding window": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=64, max_window_layers=1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_be_computed_otherwise_is_refused(message, tmp_path):
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    REFUSED[message].save_pretrained(tmp_path / "model")
    with pytest.raises(MissingEngineError, match=message):
        LlamaCpp.prepare(tmp_path / "model", "Q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_without_llama_cpp(monkeypatch, tmp_path):
    engine_file._library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingEngineError, match="pip install llama-cpp-python"):
        LlamaCpp.prepare(tmp_path, "BF16")


def test_without_gguf(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingEngineError, match="pip install gguf"):
        write_gguf(tmp_path, tmp_path / "file.gguf")
