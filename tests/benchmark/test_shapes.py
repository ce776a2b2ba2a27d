"""The named architectures are the real ones, and random weights fill them completely."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from torch_cpullm.benchmark import shapes
from torch_cpullm.demo.random_weights import random_subject
from torch_cpullm.errors import ConfigError
from torch_cpullm.testing.models import TINY

# Parameter counts of the published checkpoints, shared embeddings counted once.
PARAMETERS = {
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "tinyllama-1.1b": 1_100_048_384,
    "phi-1.5": 1_418_270_720,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
}


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_parameter_counts(name: str) -> None:
    model = shapes.meta_model(shapes.config_of(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert model.dtype == torch.bfloat16


def test_llama_3_2_1b_is_exact() -> None:
    config = shapes.config_of("Llama-3.2-1B")
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (2048, 16, 8192)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (32, 8, 64)
    assert config.rope_parameters["rope_type"] == "llama3"
    assert config.tie_word_embeddings


def test_fill_leaves_no_zero_and_nothing_uninitialised() -> None:
    config = Qwen2Config(**TINY, tie_word_embeddings=True)
    model = shapes.fill(shapes.meta_model(config))
    reference = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert model.state_dict().keys() == reference.state_dict().keys()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert (parameter != 0).all(), name
        if parameter.dim() == 2:
            assert parameter.detach().float().std().item() == pytest.approx(shapes.STD, rel=0.15), name
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, reference.get_buffer(name), rtol=0, atol=0)
    assert not model.training


def test_fill_is_a_function_of_the_seed() -> None:
    config = LlamaConfig(**TINY)
    first, again, other = (shapes.fill(shapes.meta_model(config), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_lay_wraps_around() -> None:
    target, paper = torch.empty(10), torch.arange(4.0)
    shapes._lay(target, paper, offset=3)
    assert target.tolist() == [3, 0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_any_config_json(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "llama", **TINY}), encoding="utf-8")
    for path in (file, tmp_path):
        assert shapes.config_of(str(path)).hidden_size == TINY["hidden_size"]
    advanced = []
    subject = random_subject(str(file), new_tokens=4, advance=lambda done, total: advanced.append(done / total))
    assert subject.text is None
    assert subject.prompt_BT.shape == (1, TINY["max_position_embeddings"] - 4)
    assert subject.dtype == "bf16"
    assert advanced == sorted(advanced)
    assert advanced[-1] <= 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no configuration that transformers reads"),
        ('{"model_type": "unheard-of"}', "is no configuration that transformers reads"),
        ('{"model_type": "vit"}', "expected a causal language model's configuration, got model_type 'vit'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        shapes.meta_model(shapes.config_of(str(file)))


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"llama-3\.2-1b, qwen2\.5-0\.5b, .*config\.json; got 'gpt-9'"):
        shapes.config_of("gpt-9")
