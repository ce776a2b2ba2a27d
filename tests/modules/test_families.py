"""Every family: what matches gives the original's tokens, what does not is left alone with a reason."""

import copy
import warnings

import pytest
import torch

import torch_cpullm
from torch_cpullm.modules.attention import calls
from torch_cpullm.modules.notice import FallbackWarning
from torch_cpullm.ops import block, layers
from torch_cpullm.testing.models import ATTENTION_ONLY, LEFT_ALONE, WHOLE, tiny_model

MATCHING = {**WHOLE, **ATTENTION_ONLY}


def padded_prompt():
    ids = torch.randint(3, 128, (2, 20))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model, prompt):
    with torch.no_grad():
        return model(**prompt).logits[prompt["attention_mask"].bool()]


def tokens(model, prompt):
    return model.generate(**prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False)


def fused(model):
    return [row.action for row in torch_cpullm.explain(model).swapped if "fused" in row.action]


@pytest.mark.parametrize("family", MATCHING)
def test_layers_are_fused_and_equal(family):
    stock = tiny_model(*MATCHING[family])
    ours = torch_cpullm.optimize(copy.deepcopy(stock), weights="keep", kv_cache="keep")
    expected = "fused attention + MLP" if family in WHOLE else "fused attention"
    assert fused(ours) == [expected] * stock.config.num_hidden_layers
    prompt = padded_prompt()
    difference = (logits(ours, prompt) - logits(stock, prompt)).abs().max()
    assert difference < 1e-3
    assert torch.equal(tokens(ours, prompt), tokens(stock, prompt))


@pytest.mark.parametrize("family", MATCHING)
def test_int8_stays_near(family):
    stock = tiny_model(*MATCHING[family])
    ours = torch_cpullm.optimize(copy.deepcopy(stock))
    prompt = padded_prompt()
    expected = logits(stock, prompt)
    # int8 costs a product of random matrices about 1 %; three layers of it, without cancellation, stay below 10 %.
    limit = 0.1 if family in WHOLE else 0.35  # an expert that is routed otherwise changes a whole token
    assert (logits(ours, prompt) - expected).norm() / expected.norm() < limit


@pytest.mark.parametrize("family", LEFT_ALONE)
def test_what_does_not_match_is_left_alone(family):
    stock = tiny_model(*LEFT_ALONE[family])
    ours = torch_cpullm.optimize(copy.deepcopy(stock), weights="keep", kv_cache="keep")
    told = torch_cpullm.explain(ours)
    assert fused(ours) == []
    assert all(row.reason for row in told.left_alone)
    assert told.left_alone
    prompt = padded_prompt()
    assert (logits(ours, prompt) - logits(stock, prompt)).abs().max() < 1e-3
    assert torch.equal(tokens(ours, prompt), tokens(stock, prompt))


def test_reasons_are_the_true_ones():
    reasons = {}
    families = ("granite", "olmo2", "gpt-oss", "llama, head size 24", "phi, head norms", "cohere, head norms")
    for family in (*families, "falcon, alibi", "bloom"):
        ours = torch_cpullm.optimize(tiny_model(*LEFT_ALONE[family]), "keep", "keep")
        reasons[family] = " ".join(row.reason for row in torch_cpullm.explain(ours).left_alone)
    assert "differs from the original's" in reasons["granite"]  # its residual multiplier is found by computing
    assert "does not compute an RMS or a layer norm" in reasons["olmo2"]
    assert "q_layernorm (LayerNorm) plays no part that is known" in reasons["phi, head norms"]
    assert "q_norm (CohereLayerNorm) does not compute" in reasons["cohere, head norms"]  # gains of each head
    assert "attention sinks" in reasons["gpt-oss"]
    assert "a mask that adds to the scores" in reasons["falcon, alibi"]
    assert "position_embeddings (cos, sin) were not passed" in reasons["bloom"]
    assert "head size 24" in reasons["llama, head size 24"]


def test_layers_that_return_a_tuple_still_do():
    """And are found by what they return, not by their arguments."""
    stock = tiny_model(*WHOLE["llama"])
    layer_class = type(stock.model.layers[0])

    class WithWeights(layer_class):
        def forward(self, hidden_states, output_attentions=False, **kwargs):
            return super().forward(hidden_states, **kwargs)

    for layer in stock.model.layers:
        layer.__class__ = WithWeights
    for model in (stock, tiny_model(*WHOLE["gpt-j"]), tiny_model(*WHOLE["falcon"])):
        prompt = padded_prompt()
        expected = tokens(model, prompt)
        ours = torch_cpullm.optimize(model, "keep", "keep")
        assert len(fused(ours)) == model.config.num_hidden_layers
        assert torch.equal(tokens(ours, prompt), expected)
        layer = ours.get_submodule(ours._cpullm_layers[0])
        assert layer._cpullm.structure.returns_tuple is (model is not stock)


def test_masks_that_are_added_are_read(monkeypatch):
    """Of GPT-J, whose attention is its own: what shows or hides is taken, anything else goes the long way."""
    stock = tiny_model(*WHOLE["gpt-j"])
    ours = torch_cpullm.optimize(copy.deepcopy(stock), "keep", "keep")
    ids = torch.randint(3, 90, (1, 9))
    mask = torch.zeros(1, 1, 9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), torch.finfo(torch.float32).min)
    mask[..., 5:, 1] = -torch.inf
    taken = []
    parallel = layers.decoder_layers
    monkeypatch.setattr(layers, "decoder_layers", lambda *a: (taken.append(1), parallel(*a))[1])
    for bias in (0.0, -1.5):
        mask[..., 4:, 2] = bias
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)
            got, expected = (model(ids, attention_mask=mask, use_cache=False).logits for model in (ours, stock))
        assert torch.allclose(got, expected, atol=1e-3)
        assert len(taken) == 2  # both layers, the first time


def test_encoder_decoder_is_not_broken():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 128, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    stock = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    ours = torch_cpullm.optimize(copy.deepcopy(stock), "keep", "keep")
    ids = torch.randint(3, 128, (2, 9))
    expected = stock.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(ours.generate(ids, max_new_tokens=8, do_sample=False), expected)


def test_a_plain_module_is_optimised_too():
    module = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 8)).eval()
    x = torch.randn(3, 64)
    with torch.no_grad():
        expected = module(x)
        torch_cpullm.optimize(module, weights="keep")
        assert torch.allclose(module(x), expected, atol=1e-5)
    told = torch_cpullm.explain(module)
    assert [row.path for row in told.swapped] == ["0"]
    assert "only 8 outputs" in told.left_alone[0].reason


def test_hidden_differences_are_found():
    """A layer that looks like Llama's and computes something else must not be fused."""
    stock = tiny_model(*WHOLE["llama"])
    layer_class = type(stock.model.layers[0])

    class Scaled(layer_class):
        def forward(self, hidden_states, **kwargs):
            return super().forward(hidden_states, **kwargs) * 1.01

    for layer in stock.model.layers:
        layer.__class__ = Scaled
    ours = torch_cpullm.optimize(copy.deepcopy(stock), "keep", "keep")
    assert fused(ours) == []
    prompt = padded_prompt()
    assert torch.equal(tokens(ours, prompt), tokens(stock, prompt))


@pytest.mark.parametrize("family", ["smollm3", "cohere2"])
def test_layers_that_do_not_rotate_are_found(family):
    """They look like their neighbours, but for one setting."""
    ours = torch_cpullm.optimize(tiny_model(*WHOLE[family]), "keep", "keep")
    assert [layer._cpullm.structure.attention.rotates for layer in ours.model.layers] == [True, True, True, False]


@pytest.mark.parametrize(
    "family", ["phi", "gpt neox", "stablelm, parallel", "cohere", "cohere2", "falcon", "falcon, one KV head", "gpt-j"]
)
def test_parallel_layers_are_one_op(family, monkeypatch):
    ours = torch_cpullm.optimize(tiny_model(*WHOLE[family]), "keep", "keep")
    monkeypatch.setattr(block, "attention_block", None)
    monkeypatch.setattr(block, "mlp_block", None)
    logits(ours, padded_prompt())


def test_gpt_oss_sinks_are_attended_to():
    """Its layers are left alone; its attention, which scaled_dot_product_attention has no sinks for, is not."""
    stock = tiny_model(*LEFT_ALONE["gpt-oss"])
    ours = torch_cpullm.optimize(copy.deepcopy(stock), "keep", "keep")
    before = calls()
    prompt = padded_prompt()
    assert torch.equal(tokens(ours, prompt), tokens(stock, prompt))
    assert calls() > before


def test_gpt_oss_weights_and_float_masks():
    """What the kernels do not do (attention weights) has the sinks too; a mask of floats reaches the kernels."""
    stock = tiny_model(*LEFT_ALONE["gpt-oss"])
    ours = torch_cpullm.optimize(copy.deepcopy(stock), "keep", "keep")
    ids = torch.randint(3, 90, (1, 9))
    bias = torch.zeros(1, 1, 9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), torch.finfo(torch.float32).min)
    bias[..., 4:, 2] = -1.5
    with torch.no_grad():
        one, two = (model(ids, output_attentions=True, use_cache=False).attentions for model in (ours, stock))
        got, expected = (model(ids, attention_mask=bias, use_cache=False).logits for model in (ours, stock))
    for mine, theirs in zip(one, two, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    assert torch.allclose(got, expected, atol=1e-3)
