"""The short way of a step: its bits are the model's own; it is not taken where something would be missed."""

import copy

import pytest
import torch
from torch import nn
from transformers import LogitsProcessor

import torch_cpullm
from torch_cpullm.generate import step
from torch_cpullm.testing.models import ATTENTION_ONLY, WHOLE, bundled_model, tiny_model

IDS = torch.arange(40, 60)[None]
SCALED = {"cohere", "cohere2"}  # logits, behind the head
WINDOWED = {"mistral", "qwen2, sliding", "phi3", "gemma2", "gemma3"}  # windows shorter than the texts here
FAMILIES = {**WHOLE, **ATTENTION_ONLY}


class Scores(LogitsProcessor):
    """Keeps what each token was chosen from."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(scores.clone())
        return scores


@pytest.fixture
def taken(monkeypatch):
    """How many steps went the short way."""
    counted = []
    logits = step.Step.logits
    monkeypatch.setattr(step.Step, "logits", lambda *a: (counted.append(1), logits(*a))[1])
    return counted


def generate(model, ids=IDS, **asked):
    scores = Scores()
    asked = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, **asked}
    out = model.generate(ids, logits_processor=[scores], **asked)
    return out, torch.stack(scores.seen)


def the_long_way(monkeypatch, model, *args, **asked):
    with monkeypatch.context() as patch:
        patch.setattr(step.Watch, "of", staticmethod(lambda *_: None))
        return generate(model, *args, **asked)


@pytest.mark.parametrize("padded", [False, True], ids=["even", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bits_of_the_long_way(family, padded, taken, monkeypatch):
    model = torch_cpullm.optimize(tiny_model(*FAMILIES[family]).bfloat16())
    ids = torch.randint(3, 128, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, : 5 * padded] = 0
    out, scores = generate(model, ids, attention_mask=mask)
    assert len(taken) == (
        6 if family in WHOLE and family not in WINDOWED | SCALED else 0
    )  # of 8: the prompt's, one watched
    expected, expected_scores = the_long_way(monkeypatch, model, ids, attention_mask=mask)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(out, expected)


def test_more_tokens_than_angles_made_at_a_time(int8, taken, monkeypatch):
    monkeypatch.setattr(step, "_AHEAD", 3)
    out, scores = generate(int8, max_new_tokens=12, min_new_tokens=12)
    assert len(taken) == 10
    expected, expected_scores = the_long_way(monkeypatch, int8, max_new_tokens=12, min_new_tokens=12)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(out, expected)


def test_angles_that_change_with_the_text_are_made_step_by_step(monkeypatch, taken):
    model = tiny_model(*WHOLE["llama"])
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model.config.max_position_embeddings = 24
    model = type(model)(model.config).eval()
    ours = torch_cpullm.optimize(copy.deepcopy(model), weights="keep", kv_cache="keep")
    out, _ = generate(ours)
    assert len(taken) == 6
    assert torch.equal(out, generate(model)[0])


def test_a_window_that_the_text_does_not_reach(taken):
    model = tiny_model(*WHOLE["mistral"])
    model.config.sliding_window = 64
    generate(torch_cpullm.optimize(model))
    assert len(taken) == 6


def test_a_conversation_goes_on_in_its_cache(stock, ours, taken):
    from torch_cpullm.kv import PagedCache

    cache = PagedCache(ours._cpullm_kv)
    first = ours.generate(IDS, max_new_tokens=6, min_new_tokens=6, do_sample=False, past_key_values=cache)
    longer = torch.cat([first, IDS], dim=1)
    out = ours.generate(longer, max_new_tokens=6, min_new_tokens=6, do_sample=False, past_key_values=cache)
    assert len(taken) == 8
    assert torch.equal(out, stock.generate(longer, max_new_tokens=6, min_new_tokens=6, do_sample=False))


def hook_on(module):
    return module.register_forward_hook(lambda *_: None).remove


def forward_of(module):
    module.forward = type(module).forward.__get__(module)
    return lambda: vars(module).pop("forward")


@pytest.mark.parametrize("path", ["", "model", "model.layers.1"], ids=["model", "base", "layer"])
@pytest.mark.parametrize("listen", [hook_on, forward_of])
def test_who_listens_is_called_for_every_token(path, listen, int8, taken):
    stop = listen(int8.get_submodule(path))
    try:
        generate(int8)
    finally:
        stop()
    assert not taken
    generate(int8)
    assert taken


@pytest.mark.parametrize("path", ["model.embed_tokens", "model.norm", "lm_head"])
def test_hooks_at_the_ends_are_called_on_the_short_way(path, int8, taken):
    heard = []
    handle = int8.get_submodule(path).register_forward_hook(lambda *_: heard.append(1))
    generate(int8)
    handle.remove()
    assert len(taken) == 6
    assert len(heard) == 8


def test_global_hooks_are_called_for_every_token(int8, taken):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    generate(int8)
    handle.remove()
    assert not taken


def capped_logits(original):
    class Capped(original):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = torch.tanh(out.logits / 3.0) * 3.0
            return out

    return Capped


def test_hooks_of_hidden_states_do_not_stay_in_the_way(taken):
    model = torch_cpullm.optimize(bundled_model())
    with torch.no_grad():
        model(IDS, output_hidden_states=True)
    generate(model)
    assert len(taken) == 6


def scaled_in_place(original):
    class Scaled(original):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits.mul_(-1.0)
            return out

    return Scaled


@pytest.mark.parametrize("inference", [False, True])
def test_what_a_forward_writes_into_its_tensors_is_not_missed(inference, taken):
    model = bundled_model()
    model.__class__ = scaled_in_place(type(model))
    ours = torch_cpullm.optimize(copy.deepcopy(model), weights="keep", kv_cache="keep")
    with torch.inference_mode(inference):
        out, _ = generate(ours)
        assert not taken
        assert torch.equal(out, generate(model)[0])


def test_what_a_forward_adds_is_not_missed(taken):
    model = bundled_model()
    model.__class__ = capped_logits(type(model))
    ours = torch_cpullm.optimize(copy.deepcopy(model), weights="keep", kv_cache="keep")
    out, scores = generate(ours)
    assert not taken
    assert torch.equal(out, generate(model)[0])
    assert scores[scores.isfinite()].abs().max() <= 3.0


def test_a_replaced_module_is_used_from_the_next_generate_on(taken):
    model = torch_cpullm.optimize(bundled_model())
    generate(model)
    before = len(taken)
    assert before
    layer = model.model.layers[0].mlp
    layer.down_proj = nn.Linear(layer.down_proj.in_features, layer.down_proj.out_features, bias=False)
    with pytest.warns(match="was replaced"):
        generate(model)
    assert len(taken) == before


def test_the_model_can_be_restored_and_copied(taken):
    model = torch_cpullm.optimize(bundled_model(), weights="keep", kv_cache="keep")
    out, _ = generate(copy.deepcopy(model))
    assert taken
    assert torch.equal(out, generate(model)[0])
    torch_cpullm.restore(model)
    assert not [name for name in vars(model) if name.startswith("_cpullm")]


def test_a_full_pool_is_heard(int8):
    from torch_cpullm.errors import OutOfPagesError
    from torch_cpullm.kv import PagedCache

    pages = PagedCache(int8._cpullm_kv, limit_bytes=sum(spec.page_bytes for spec in int8._cpullm_kv))
    with pytest.raises(OutOfPagesError):
        int8.generate(IDS, max_new_tokens=60, min_new_tokens=60, do_sample=False, past_key_values=pages)
    assert pages.get_seq_length() == 64
