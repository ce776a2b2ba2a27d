"""A checkpoint of random weights is what fill() makes, whichever way it is cut."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from torch_cpullm.benchmark import checkpoint
from torch_cpullm.benchmark.shapes import fill, meta_model
from torch_cpullm.errors import ConfigError
from torch_cpullm.testing.models import TINY


@pytest.mark.parametrize("shard", [1 << 30, 4000])
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config])
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_what_fill_makes(kind, tied, shard, tmp_path, monkeypatch):
    config = kind(**TINY, tie_word_embeddings=tied)
    monkeypatch.setattr(checkpoint, "_SHARD", shard)
    advanced = []
    checkpoint.write_filled(meta_model(config), tmp_path, lambda done, total: advanced.append(done / total))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == 4000)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    expected = fill(meta_model(config)).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert advanced[-1] == 1.0


def test_written_once(tmp_path):
    shape = tmp_path / "small" / "config.json"
    shape.parent.mkdir()
    shape.write_text(json.dumps({"model_type": "llama", **TINY}), encoding="utf-8")
    first = checkpoint.random_checkpoint(str(shape), tmp_path / "work")
    assert first == tmp_path / "work" / "small"
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert checkpoint.random_checkpoint(str(shape), tmp_path / "work") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    assert checkpoint.read_config(first).hidden_size == 32


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 30})())
    with pytest.raises(ConfigError, match=r"folder: expected 7 GB free"):
        checkpoint.random_checkpoint("llama-3.2-1b", Path(tmp_path) / "work")
