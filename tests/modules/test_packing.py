"""What optimize() does to linear layers and embeddings beyond rounding: shared tables, outliers, calibration."""

import copy

import pytest
import torch

import torch_cpullm
from torch_cpullm.errors import ConfigError
from torch_cpullm.modules import calibrate, packing
from torch_cpullm.modules.embedding import PackedEmbedding
from torch_cpullm.modules.observe import observe
from torch_cpullm.modules.texts import MOST_WINDOWS, calibration_windows
from torch_cpullm.ops import linear as ops
from torch_cpullm.pack.gptq import solve
from torch_cpullm.testing.models import ATTENTION_ONLY, LEFT_ALONE, WHOLE, bundled_model, bundled_tokenizer, tiny_model
from torch_cpullm.testing.outliers import plant_outliers

IDS = torch.arange(100, 164)[None]
TEXT = "def read(self, size=-1):\n    return self.buffer[self.start : self.start + size]\n" * 60
UNSEEN = "class Queue:\n    def __init__(self, maxsize=0):\n        self.maxsize = maxsize\n        self.items = []\n"


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def off(model, expected, ids=IDS):
    return float((logits(model, ids) - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def stock():
    return bundled_model(torch.bfloat16)


@pytest.mark.parametrize(
    ("choices", "share"),
    [({}, 0.515), ({"weights": "int4"}, 0.37), ({"weights": "bf16"}, 1.01), ({"weights": "keep"}, 1.01)],
)
def test_a_tied_table_is_stored_once(stock, choices, share):
    model = torch_cpullm.optimize(copy.deepcopy(stock), **choices)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert table.bytes is head.packed
    told = torch_cpullm.explain(model)
    assert told.weight_bytes_after <= share * told.weight_bytes_before
    assert torch.equal(table.weight, head.weight)
    assert table(IDS).dtype == torch.bfloat16
    assert torch.equal(table(IDS), table.weight[IDS])


def test_an_untied_table_keeps_bytes_of_its_own():
    model = torch_cpullm.optimize(tiny_model(*WHOLE["mistral"]).bfloat16())
    table = model.get_input_embeddings()
    assert isinstance(table, PackedEmbedding)
    assert table.bytes is not model.get_output_embeddings().packed
    table.weight = torch.nn.Parameter(torch.ones(128, 64))
    assert (table(torch.tensor([3])) == 1).all()


def test_embeddings_may_be_kept(stock):
    model = torch_cpullm.optimize(copy.deepcopy(stock), embeddings="keep")
    assert torch.equal(model.get_input_embeddings().weight, stock.get_input_embeddings().weight)
    assert type(model.get_input_embeddings()) is torch.nn.Embedding


@pytest.mark.parametrize("weights", ["int4", "int8"])
@pytest.mark.parametrize("family", [*WHOLE, *ATTENTION_ONLY, *LEFT_ALONE])
def test_every_family_runs_quantised(family, weights):
    """Whatever of it is packed: nothing fails, and the logits stay near (a random router may choose another expert)."""
    model = tiny_model(*{**WHOLE, **ATTENTION_ONLY, **LEFT_ALONE}[family])
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        torch_cpullm.optimize(model, weights=weights)
        after = model(input_ids=ids).logits
        assert after.isfinite().all()
        assert (after - before).norm() / before.norm() < (0.25 if weights == "int8" else 0.6)
        model.generate(ids, max_new_tokens=3, do_sample=False)


def test_outlier_channels_are_found_without_any_text(monkeypatch):
    model = plant_outliers(bundled_model())
    expected = logits(model)
    helped = off(torch_cpullm.optimize(copy.deepcopy(model)), expected)
    monkeypatch.setattr(packing, "choose_multiplier", lambda *_: None)
    plain = off(torch_cpullm.optimize(copy.deepcopy(model), check=False), expected)
    assert helped < 0.02
    assert plain > 4 * helped


def test_outliers_are_explained_and_read_back():
    model = plant_outliers(bundled_model())
    weight = model.model.layers[0].self_attn.q_proj.weight.clone()
    torch_cpullm.optimize(model)
    rows = {row.path: row for row in torch_cpullm.explain(model).swapped}
    assert "outlier channels moved" in rows["model.layers.0.self_attn.q_proj"].reason
    back = model.model.layers[0].self_attn.q_proj.weight
    assert (back - weight).norm() < 0.02 * weight.norm()
    assert rows["model.layers.0"].action == "fused attention + MLP"  # q, k and v agree in their factors
    state = model.state_dict()
    model.load_state_dict(state)
    assert off(model, logits(model)) == 0.0


def test_one_weight_of_a_group_may_be_replaced():
    """The new one keeps the factors of its neighbours: q, k and v are still given one prepared input."""
    model = torch_cpullm.optimize(plant_outliers(bundled_model()))
    projection = model.model.layers[0].self_attn.q_proj
    projection.weight = torch.nn.Parameter(2.0 * projection.weight)
    assert ops.packed_info(projection.packed).has_multiplier
    assert logits(model).isfinite().all()


def test_a_failure_half_way_leaves_the_group_to_rounding(stock, monkeypatch):
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 9:  # k of the second layer, after its q was solved
            raise RuntimeError("out of luck")
        return solve(*arguments)

    monkeypatch.setattr(calibrate, "solve", failing)
    model = torch_cpullm.optimize(copy.deepcopy(stock), weights="int4", calibration=IDS)
    told = torch_cpullm.explain(model)
    assert any("out of luck" in note for note in told.notes)
    assert sum(row.class_name == "Linear" for row in told.swapped) == 6 * 7 + 1
    assert logits(model).isfinite().all()


def test_calibration_makes_int4_better(stock):
    tokenizer = bundled_tokenizer()
    ids = tokenizer(UNSEEN, return_tensors="pt").input_ids
    expected = logits(stock, ids)
    plain = off(torch_cpullm.optimize(copy.deepcopy(stock), weights="int4"), expected, ids)
    model = torch_cpullm.optimize(copy.deepcopy(stock), weights="int4", calibration=[TEXT], tokenizer=tokenizer)
    assert off(model, expected, ids) < 0.8 * plain
    rows = {row.path: row.reason for row in torch_cpullm.explain(model).swapped}
    assert sum("calibrated" in reason for reason in rows.values()) == 6 * 7
    assert "calibrated" not in rows["lm_head"]
    assert torch_cpullm.optimize(model, weights="int4", calibration=[TEXT], tokenizer=tokenizer) is model


@pytest.mark.parametrize("choices", [{}, {"group_size": 64}, {"weights": "int4", "symmetric": False}])
def test_calibration_on_token_ids(stock, choices):
    model = torch_cpullm.optimize(copy.deepcopy(stock), calibration=IDS.repeat(3, 1), **choices)
    assert off(model, logits(stock)) < (0.15 if "weights" in choices else 0.03)
    with torch.no_grad():
        model.generate(IDS, max_new_tokens=3, do_sample=False)


def test_calibration_without_decoder_layers_rounds_and_says_so():
    class Body(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.first = torch.nn.Embedding(200, 64), torch.nn.Linear(64, 96)

        def get_input_embeddings(self):
            return self.embed

        def forward(self, input_ids, **_):
            return self.first(self.embed(input_ids))

    model = torch_cpullm.optimize(Body(), weights="int4", calibration=IDS)
    assert any("no list of decoder layers" in note for note in torch_cpullm.explain(model).notes)
    assert [row.action for row in torch_cpullm.explain(model).swapped] == ["int4 g32", "int8"]


def test_texts_become_windows(stock):
    windows = calibration_windows(stock, [TEXT] * 40, bundled_tokenizer())
    assert windows.shape == (MOST_WINDOWS, 512)
    assert calibration_windows(stock, [TEXT[:400]], bundled_tokenizer()).shape[0] == 1
    assert calibration_windows(bundled_model(), [TEXT], None).shape[1] == 512  # the folder it was loaded from


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["short"], "texts of 32 tokens or more"),
        ("one string", "a list of strings"),
        ([3, 4], "a list of strings"),
        (torch.zeros(3, 40), "token ids"),
        (torch.zeros(3, 4, dtype=torch.int64), "token ids"),
        (torch.zeros(40, dtype=torch.int64), "token ids"),
    ],
)
def test_texts_that_cannot_be_used(stock, texts, sentence):
    with pytest.raises(ConfigError, match=f"calibration: expected .*{sentence}|calibration: expected {sentence}"):
        torch_cpullm.optimize(copy.deepcopy(stock), calibration=texts, tokenizer=bundled_tokenizer())


def test_a_missing_tokenizer_is_named():
    with pytest.raises(ConfigError, match=r"tokenizer: .*pass one"):
        calibration_windows(tiny_model(*WHOLE["llama"]), [TEXT], None)


def test_observing_sees_what_reaches_a_layer(stock):
    seen = observe(stock, ["model.layers.0.mlp.down_proj", "lm_head"])
    assert set(seen) == {"model.layers.0.mlp.down_proj", "lm_head"}
    assert seen["lm_head"].absmax_K.shape == (384,)
    assert seen["lm_head"].sample_MK.shape == (8, 384)
    assert (seen["lm_head"].sample_MK.abs() <= seen["lm_head"].absmax_K).all()
    assert observe(torch.nn.Linear(3, 3), [""]) == {}
