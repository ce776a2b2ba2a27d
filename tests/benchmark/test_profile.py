"""Where the time goes: every operator is found, with the bytes and operations that its shapes say."""

import json

import pytest
import torch
from typer.testing import CliRunner

import torch_cpullm
from torch_cpullm.benchmark.profile import HOST, profile
from torch_cpullm.cli.app import app
from torch_cpullm.machine.probe import Roofline
from torch_cpullm.ops.attention import PAGE_TOKENS, layer_bytes
from torch_cpullm.testing.models import bundled_model

LIMITS = Roofline(1, 10e9, 1e11, 2e11, 4e11, 0.0, 0.0)


def packed_bytes(model, suffixes):
    modules = dict(model.named_modules())
    return sum(m.packed.nbytes for name, m in modules.items() if name.endswith(suffixes) and hasattr(m, "packed"))


def test_what_is_counted_is_what_the_shapes_say():
    model = torch_cpullm.optimize(bundled_model(torch.bfloat16))
    prefill, token = profile(model, prompt=33, tokens=5, repetitions=2, threads=torch.get_num_threads())
    config = model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    for step, rows in ((prefill, 33), (token, 1)):
        found = {spent.name: spent for spent in step.spent}
        mlp, attention = found["mlp_block"], found["attention_block"]
        assert mlp.calls == attention.calls == layers
        assert mlp.bytes == packed_bytes(model, ("gate_proj", "up_proj", "down_proj"))
        assert mlp.operations == 2 * 3 * config.hidden_size * config.intermediate_size * rows * layers
        assert mlp.integer
        assert step.spent[-1].name == HOST
        assert sum(spent.seconds for spent in step.spent) >= 0.999 * step.seconds
        head = next(spent for name, spent in found.items() if name.startswith("linear"))
        assert head.name == f"linear {config.vocab_size} x {config.hidden_size}"
        assert head.calls == 1
    channels = config.hidden_size // heads
    page = layer_bytes(config.num_key_value_heads, channels, "int8")
    weights = packed_bytes(model, ("q_proj", "k_proj", "v_proj", "o_proj"))
    read = {spent.name: spent for spent in token.spent}["attention_block"].bytes
    assert read == pytest.approx(weights + layers * page / PAGE_TOKENS * (33 + 3))  # the mean of five tokens


def test_a_stock_model_is_shown_by_torchs_operators():
    prefill, _ = profile(bundled_model(torch.bfloat16), prompt=8, tokens=2, repetitions=1, threads=1)
    assert any(spent.name == "torch mm" or "linear" in spent.name for spent in prefill.spent)


def test_shares():
    model = torch_cpullm.optimize(bundled_model(torch.bfloat16), weights="bf16")
    spent = profile(model, prompt=4, tokens=2, repetitions=1, threads=1)[0].spent[0]
    assert spent.bandwidth_share(LIMITS) == pytest.approx(spent.bytes / spent.seconds / 10e9)
    assert spent.peak_share(LIMITS) == pytest.approx(spent.operations / spent.seconds / 2e11)


CONFIG = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize("extra", [[], ["--stock"], ["--weights", "int4"]])
def test_the_command(extra, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    asked = ["--shape", str(tmp_path), "--prompt", "16", "--tokens", "3", "--repetitions", "1", *extra]
    outcome = CliRunner().invoke(app, ["profile", *asked])
    assert outcome.exit_code == 0, outcome.output
    assert "prefill of 16 tokens" in outcome.output
    assert "token after 16" in outcome.output
    assert "of read" in outcome.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "gpt-9"], "shape: expected one of"),
        (["--model", "nowhere"], "model: expected the folder of a checkpoint, got 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    outcome = CliRunner().invoke(app, ["profile", *arguments])
    assert outcome.exit_code == 2
    assert message in outcome.output.replace("\n", " ")


def test_a_prompt_beyond_the_context(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    outcome = CliRunner().invoke(app, ["profile", "--shape", str(tmp_path), "--prompt", "126", "--tokens", "3"])
    assert outcome.exit_code == 2
    assert "prompt: expected at most 125" in outcome.output
