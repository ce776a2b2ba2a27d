"""Training resumes where it stopped, refuses another recipe's checkpoint, and draws its batches from seed and step."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from torch_cpullm.demo.train import Recipe, batch_at, build_model, fit, learning_rate_at

TINY = Recipe(vocabulary=64, hidden=32, layers=1, heads=2, kv_heads=1, ffn=48, context=16, batch=2, steps=100, warmup=2)
IDS = np.arange(4000, dtype=np.int64) % 7


@pytest.fixture
def model():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
    )
    return build_model(TINY, tokenizer)


def test_it_learns_and_resumes(model, tmp_path):
    curve = fit(model, IDS, IDS, TINY, tmp_path)
    assert [point["step"] for point in curve] == [100]
    assert curve[0]["validation"] < 1.0 < np.log(7)  # a cycle of seven tokens is easily learnt
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    assert fit(model, IDS, IDS, TINY, tmp_path) == curve  # nothing left to do but to read the checkpoint
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_another_recipe_is_refused(model, tmp_path):
    fit(model, IDS, IDS, TINY, tmp_path)
    with pytest.raises(ValueError, match=r"work: .* was written by another recipe"):
        fit(model, IDS, IDS, Recipe(**{**vars(TINY), "batch": 3}), tmp_path)


def test_batches_are_functions_of_seed_and_step():
    assert torch.equal(batch_at(5, IDS, TINY), batch_at(5, IDS, TINY))
    assert not torch.equal(batch_at(5, IDS, TINY), batch_at(6, IDS, TINY))
    assert batch_at(0, IDS, TINY).shape == (2, 17)


def test_learning_rate_rises_and_falls():
    rates = [learning_rate_at(step, TINY) for step in range(TINY.steps)]
    assert rates.index(max(rates)) in (1, 2)
    assert rates[0] < rates[1]
    assert rates[-1] < 0.1 * max(rates)
