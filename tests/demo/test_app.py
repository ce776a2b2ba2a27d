"""The command line: what it says to mistakes, and one run from end to end at a tiny shape."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from torch_cpullm.benchmark.shapes import SHAPES
from torch_cpullm.demo import compare
from torch_cpullm.demo.app import app
from torch_cpullm.demo.random_weights import random_subject
from torch_cpullm.demo.report import size

CONFIG = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 128,
}


def run(*arguments: str) -> tuple[int, str]:
    # rich wraps at the width of the terminal, which a test has none of
    result = CliRunner(env={"COLUMNS": "1000", "TERM": "dumb"}).invoke(app, arguments)
    return result.exit_code, result.output


def test_unknown_shape_lists_what_is_possible() -> None:
    code, output = run("--shape", "gpt-9")
    assert code == 2
    (line,) = [line for line in output.splitlines() if line.strip()]
    assert line.startswith("shape: expected one of")
    assert all(name in line for name in SHAPES)
    assert "got 'gpt-9'" in line


def test_missing_checkpoint_says_what_to_pass(tmp_path: Path) -> None:
    code, output = run("--model", str(tmp_path / "nothing"))
    assert code == 2
    (line,) = [line for line in output.splitlines() if line.strip()]
    assert line.startswith("model: expected a folder written by save_pretrained")
    assert "--shape" in line


def test_folder_without_weights_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    code, output = run("--model", str(tmp_path))
    assert code == 2
    assert "model: transformers loads no causal LM with a tokenizer from" in output
    assert "Traceback" not in output


def test_shape_and_model_exclude_each_other() -> None:
    code, output = run("--shape", "llama-3.2-1b", "--model", "somewhere")
    assert code == 2
    assert "expected --shape or --model, got both" in output


def test_unknown_format_lists_the_formats() -> None:
    code, output = run("--weights", "int3")
    assert code == 2
    assert "'int8'" in output


def test_tiny_shape_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG), encoding="utf-8")
    monkeypatch.setattr(compare, "BUDGET_S", 0.0)
    for fits, turns in ((True, "taken in turns"), (False, "one side after the other")):
        monkeypatch.setattr(compare, "fits_twice", lambda _, fits=fits: fits)
        code, output = run("--shape", str(file), "--tokens", "4")
        assert code == 0, output
        assert turns in output
        assert "prefill 124, tokens/s" in output
        assert "decode 3, tokens/s" in output
        assert "perplexity" not in output


def test_a_copy_is_made_only_where_it_fits(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    subject = random_subject(str(tmp_path), new_tokens=4)
    assert compare.fits_twice(subject, available=3 * subject.weight_bytes + compare.HEADROOM)
    assert not compare.fits_twice(subject, available=subject.weight_bytes + compare.HEADROOM)
    assert compare.fits_twice(subject)  # a megabyte, on any machine


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (1664, "1.66 kB"), (25_175_808, "25.18 MB"), (2_471_628_800, "2.47 GB")]
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert size(count) == text
