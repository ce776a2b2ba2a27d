"""`torch-cpullm generate`: real models, small ones, and what is said to mistakes."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import torch_cpullm
from torch_cpullm.cli.app import app
from torch_cpullm.demo.bundled import MODEL_DIR, load_bundled

PROMPT = "class Connection:\n    def __init__(self, host"


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch_cpullm.distributed.shutdown()


def generate(*arguments, prompt=PROMPT, tokens=12):
    command = ["generate", *map(str, arguments), "--prompt", prompt, "--max-new-tokens", str(tokens)]
    return CliRunner(env={"COLUMNS": "1000", "TERM": "dumb"}).invoke(app, command)


def answer(*arguments, **more):
    result = generate(*arguments, **more)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refuse(*arguments, **more):
    """The one line that a mistake is answered with, after what was being loaded."""
    result = generate(*arguments, **more)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr.splitlines()[-1]


def optimized(**choices):
    model, tokenizer = load_bundled()
    return torch_cpullm.optimize(model, **choices), tokenizer


def expected(model, tokenizer, tokens=12):
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        made = model.generate(input_ids=ids, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_bundled_model_answers_on_stdout():
    result = generate("demo")
    assert result.stdout == expected(*optimized()) + "\n"
    speeds = result.stderr.splitlines()[-1]
    assert re.fullmatch(r"prompt: \d+ tokens in \d+\.\d\d s; answer: 12 tokens, \d+\.\d tokens/s", speeds)


def test_formats_are_those_of_optimize():
    choices = ("--weights", "keep", "--kv-cache", "keep")
    assert answer("demo", *choices) == expected(*optimized(weights="keep", kv_cache="keep")) + "\n"


def test_one_token():
    result = generate("demo", tokens=1)
    assert "answer: 1 tokens" in result.stderr.splitlines()[-1]


def test_a_temperature_draws_by_its_seed():
    hot = ("--temperature", "2.0")
    first, again, other = (answer("demo", *hot, "--seed", seed, tokens=24) for seed in (1, 1, 2))
    assert first == again != other


def test_every_kind_of_folder(tmp_path):
    model, tokenizer = optimized()
    text = expected(model, tokenizer) + "\n"
    torch_cpullm.save(model, tmp_path / "saved", tokenizer)
    assert answer(tmp_path / "saved") == text
    assert answer(MODEL_DIR) == text
    config = torch_cpullm.CpuLlmConfig()
    packed = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.bfloat16, quantization_config=config)
    packed.save_pretrained(tmp_path / "packed")
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(tmp_path / "packed")
    assert answer(tmp_path / "packed") == text
    for folder in ("saved", "packed"):
        line = refuse(tmp_path / folder, "--weights", "int4")
        assert line == f"weights: expected none for '{tmp_path / folder}', which is packed already; leave it out"


def test_mistakes_are_one_line(tmp_path):
    assert refuse(tmp_path).startswith("model: expected a folder with config.json, weights and a tokenizer, found none")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such"}))
    assert refuse(tmp_path).startswith(f"model: transformers loads no causal LM with a tokenizer from '{tmp_path}': ")
    assert refuse("demo", prompt="") == "prompt: expected a text of at least one token, got none"
    assert refuse("demo", tokens=100000).startswith("prompt: expected at most ")


def test_other_ranks_are_silent(monkeypatch):
    second = torch_cpullm.distributed.World(rank=1, size=2, local_rank=1, local_size=2)
    monkeypatch.setattr(torch_cpullm.distributed, "init", lambda: second)
    result = generate("demo")
    assert (result.exit_code, result.output) == (0, "")
