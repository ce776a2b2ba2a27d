"""Training mode and gradients take the original path, and say so once."""

import copy
import warnings

import pytest
import torch

from torch_cpullm.modules import notice
from torch_cpullm.modules.notice import FallbackWarning

IDS = torch.arange(10, 30)[None]


@pytest.fixture(autouse=True)
def _say_it_again(monkeypatch):
    monkeypatch.setattr(notice, "_said", set())


def gradients(model):
    model(input_ids=IDS, labels=IDS).loss.backward()
    found = [model.model.norm.weight.grad, model.model.layers[0].input_layernorm.weight.grad]
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model(inputs_embeds=embedded, labels=IDS).loss.backward()
    result = [grad.clone() for grad in (*found, embedded.grad)]
    model.zero_grad()
    return result


def test_gradients_are_stocks(stock, ours):
    with pytest.warns(FallbackWarning, match="gradients are enabled"):
        got = gradients(ours)
    for have, want in zip(got, gradients(stock), strict=True):
        assert torch.allclose(have, want, atol=1e-4)


def test_training_mode_is_stocks(stock, ours):
    ours.train()
    try:
        with torch.no_grad(), pytest.warns(FallbackWarning, match="training mode"):
            got = ours(IDS).logits
    finally:
        ours.eval()
    with torch.no_grad():
        assert torch.allclose(got, stock(IDS).logits, atol=1e-3)


def test_it_is_said_once(ours):
    with pytest.warns(FallbackWarning):
        ours(IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(IDS)


def test_int8_layers_pass_gradients_through(int8):
    model = copy.deepcopy(int8).float()
    with pytest.warns(FallbackWarning):
        assert all(grad.isfinite().all() and grad.abs().sum() > 0 for grad in gradients(model))
