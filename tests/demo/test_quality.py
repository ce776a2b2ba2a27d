"""Perplexity through the cache is the plain formula's, for any size of piece."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from torch_cpullm.demo import quality


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # far from uniform predictions, so that a shifted target would show
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def windows_NT() -> torch.Tensor:
    return torch.randint(50, (5, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("piece", [1, 5, 23, 24, 512])
def test_equals_the_plain_formula(model: LlamaForCausalLM, windows_NT: torch.Tensor, piece: int) -> None:
    with torch.no_grad():
        logits = model(windows_NT).logits[:, :-1].flatten(0, 1)
    expected = math.exp(torch.nn.functional.cross_entropy(logits, windows_NT[:, 1:].flatten()))
    assert quality.perplexity(model, windows_NT, piece=piece) == pytest.approx(expected, rel=1e-5)


def test_batches_do_not_matter(
    model: LlamaForCausalLM, windows_NT: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quality.perplexity(model, windows_NT, piece=8)
    monkeypatch.setattr(quality, "LOGITS_AT_ONCE", 2 * 8 * 50)
    seen: list[tuple[int, int]] = []
    assert quality.perplexity(model, windows_NT, piece=8, advance=lambda *now: seen.append(now)) == pytest.approx(whole)
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_windows_are_whole_and_spread() -> None:
    ids_T = torch.arange(10 * 8 + 3)
    assert quality.windows_of(ids_T, 8).shape == (10, 8)
    assert quality.windows_of(ids_T, 8, limit=99).shape == (10, 8)
    assert quality.windows_of(ids_T, 8, limit=3)[:, 0].tolist() == [0, 32, 72]
    with pytest.raises(ValueError, match="at least one window of 99 tokens, got 83"):
        quality.windows_of(ids_T, 99)


def test_change_in_percent() -> None:
    assert quality.change(20.0, 20.1) == pytest.approx(0.5)
