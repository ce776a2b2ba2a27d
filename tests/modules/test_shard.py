"""Packing a rank's part: the codes of the whole, no more memory than that, and no way to take a part for the whole."""

import copy
import re

import pytest
import torch

import torch_cpullm
from torch_cpullm import pretrained
from torch_cpullm.api import optimize_by
from torch_cpullm.config import Config
from torch_cpullm.errors import UnsupportedModelError
from torch_cpullm.modules import packing
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.modules.swap import state_of
from torch_cpullm.ops import linear as ops
from torch_cpullm.pack import PackCheck
from torch_cpullm.plan import Shard
from torch_cpullm.testing.models import tiny_model
from torch_cpullm.testing.outliers import plant_outliers

# Heads of 64 channels: with 2 ranks inputs are cut at 256 for both of a layer's outputs, with 4 at 128 and 192.
SIZES = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = torch.arange(3, 67)[None]
FORMATS = {
    "int8": {"weights": "int8"},
    "int8 g64": {"weights": "int8", "group_size": 64},
    "int4 g32": {"weights": "int4"},
    "int4 g64": {"weights": "int4", "group_size": 64, "lm_head": "int4"},
    "int4 g128": {"weights": "int4", "group_size": 128, "activations": "bf16"},
    "int4 g32 asymmetric": {"weights": "int4", "symmetric": False},
    "int4 g128 asymmetric": {"weights": "int4", "symmetric": False, "group_size": 128},
    "bf16": {"weights": "bf16"},
    "f32": {"weights": "keep"},
}


def model_of(**changes):
    return tiny_model("LlamaConfig", {**SIZES, "attention_bias": True, "mlp_bias": True, **changes})


def optimized(model, config, shard=None, windows_NT=None):
    made = copy.deepcopy(model)
    optimize_by(made, config, windows_NT, shard=shard or Shard())
    return made


def linears(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, PackedLinear)}


def assert_codes_of(whole, part):
    """Each packed layer of `part` holds what it is said to hold, of the same layer of `whole`."""
    wholes, cut = linears(whole), 0
    assert linears(part).keys() == wholes.keys()
    for path, module in linears(part).items():
        weight_NK = ops.unpack(wholes[path].packed)
        if module.part is not None:
            cut += 1
            weight_NK = torch.cat([weight_NK[span.first : span.stop] for span in module.part.rows])
            weight_NK = weight_NK[:, module.part.inputs.first : module.part.inputs.stop]
        info, expected = ops.packed_info(module.packed), ops.packed_info(wholes[path].packed)
        assert torch.equal(ops.unpack(module.packed), weight_NK), path
        assert (info.format, info.has_multiplier) == (expected.format, expected.has_multiplier)
        assert info.has_bias == (expected.has_bias and (module.part is None or module.part.bias))
    assert cut == len(wholes)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", FORMATS)
def test_a_part_has_the_codes_of_the_whole(name, rank, calibrated):
    config = Config(**FORMATS[name], calibrated=calibrated and name not in ("bf16", "f32"))
    windows_NT = IDS if config.calibrated else None
    model = model_of()
    assert_codes_of(
        optimized(model, config, windows_NT=windows_NT), optimized(model, config, Shard(rank, 2), windows_NT)
    )


@pytest.mark.parametrize("name", ["int8", "int4 g32 asymmetric", "f32"])
@pytest.mark.parametrize("rank", range(4))
def test_codes_where_blocks_are_cut(name, rank):
    """Formats that can be cut inside a block of 256 are what one rank has; 2 ranks share a KV head."""
    model, config = model_of(), Config(**FORMATS[name])
    assert_codes_of(optimized(model, config), optimized(model, config, Shard(rank, 4)))


@pytest.mark.parametrize("rank", [0, 3])
def test_formats_that_cannot_be_cut_there_change(rank):
    part = optimized(model_of(), Config(weights="int4", group_size=128), Shard(rank, 4))
    formats = {path: str(ops.packed_info(module.packed).format) for path, module in linears(part).items()}
    assert formats["model.layers.0.self_attn.o_proj"] == "int4 g128 asymmetric"
    assert formats["model.layers.0.mlp.down_proj"] == "int4 g64 asymmetric"  # cut at 192
    assert formats["model.layers.0.mlp.up_proj"] == "int4 g128"
    notes = "\n".join(torch_cpullm.explain(part).notes)
    assert "down_proj is cut at multiples of 192 inputs, where its scales are stored together" in notes
    assert notes.count("MLP columns") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_outlier_channels_are_moved_in_each_part(rank):
    model = plant_outliers(model_of(attention_bias=False, mlp_bias=False))
    whole, part = optimized(model, Config()), optimized(model, Config(), Shard(rank, 2))
    assert any(ops.packed_info(module.packed).has_multiplier for module in linears(part).values())
    assert_codes_of(whole, part)


@pytest.mark.parametrize("config", [Config(), Config(weights="int4", lm_head="int4"), Config(weights="keep")])
def test_a_tied_head_is_cut_and_its_table_is_whole(config):
    model = model_of(tie_word_embeddings=True)
    part = optimized(model, config, Shard(1, 2))
    head, table = part.get_output_embeddings(), part.get_input_embeddings()
    assert ops.packed_info(head.packed).out_features == 300 - head.part.rows[0].first == 300 - 192
    expected = model.get_input_embeddings().weight
    assert table(IDS).shape == (*IDS.shape, 128)
    assert (table.weight - expected).norm() < 0.02 * expected.norm()
    assert torch.equal(head.weight, table.weight)  # tied, so that it can be read


@pytest.mark.parametrize("size", [2, 4])
def test_bytes_are_shared(size):
    whole, part = (optimized(model_of(), Config(), shard) for shard in (Shard(), Shard(0, size)))
    before, after = (sum(m.packed.numel() for p, m in linears(x).items() if "layers" in p) for x in (whole, part))
    assert after < before / size * 1.3  # pages, and panels that are not full
    rows = {row.path: row for row in torch_cpullm.explain(part).swapped}
    for path, module in linears(part).items():
        assert rows[path].bytes_after == module.packed.numel()


@pytest.mark.parametrize("windows_NT", [None, IDS])
def test_one_layer_at_a_time_is_whole_and_no_part_runs(windows_NT, monkeypatch):
    """What runs for proofs, outliers and calibration is whole; a layer is cut before the next one is packed."""
    model = model_of()
    whole = 0

    def watch(module, *_):
        assert not any(each.part for each in linears(module).values())

    def packing_one(linear, packed, *others):
        take_over(linear, packed, *others)
        nonlocal whole
        whole = max(whole, sum(module.part is None for module in linears(model).values()))

    take_over = PackedLinear.take_over
    monkeypatch.setattr(PackedLinear, "take_over", staticmethod(packing_one))
    for module in (model, *model.model.layers):
        module.register_forward_pre_hook(watch)
    optimize_by(model, Config(calibrated=windows_NT is not None), windows_NT, shard=Shard(0, 2))
    assert whole == (3 if windows_NT is None else 7)


def test_a_calibration_that_fails_half_way_leaves_parts(monkeypatch):
    solve, calls = packing.Packer.pack, []

    def failing(packer, group, *others):
        calls.append(group)
        if len(calls) == 3:  # gate and up of the first layer
            raise RuntimeError("out of luck")
        return solve(packer, group, *others)

    monkeypatch.setattr(packing.Packer, "pack", failing)
    part = optimized(model_of(), Config(calibrated=True), Shard(0, 2), IDS)
    assert any("out of luck" in note for note in torch_cpullm.explain(part).notes)
    assert all(module.part is not None for module in linears(part).values())


def test_what_cannot_be_packed_cannot_be_shared(monkeypatch):
    def refuse(module, *_):
        return PackCheck(0.3 if module.in_features == 768 else 0.0, 0.05)

    monkeypatch.setattr(packing, "check_packed_linear", refuse)
    with pytest.raises(
        UnsupportedModelError, match=r"layers\.0\.mlp\.down_proj: expected a layer that ranks can share"
    ):
        optimized(model_of(), Config(), Shard(0, 2))


@pytest.fixture(scope="module")
def part():
    return optimized(model_of(), Config(), Shard(1, 2))


def test_a_part_says_what_it_is(part):
    module = part.model.layers[1].self_attn.k_proj
    assert (module.out_features, module.in_features) == (128, 128)  # of the whole: what transformers' checks read
    assert "outputs 64-127, inputs 0-127" in repr(module)
    assert torch_cpullm.explain(part).notes[1:4] == (
        "rank 1 of 2: query heads 4-7 of 8, KV heads 1-1 of 2",
        "rank 1 of 2: MLP columns 512-767 of 768",
        "rank 1 of 2: head rows 192-299 of 300; every rank has all embeddings, since tokens come as ids",
    )
    parts = part.model.layers[1]._cpullm
    assert (parts.numbers.heads, parts.numbers.kv_heads, parts.spec.kv_heads) == (4, 1, 1)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda model, _: model.lm_head.weight,
        lambda model, _: model.state_dict(),
        lambda model, folder: model.save_pretrained(folder),
        lambda model, folder: torch_cpullm.save(model, folder),
        lambda model, _: torch_cpullm.restore(model),
        lambda model, _: torch_cpullm.optimize(model, weights="int4"),
        lambda model, _: setattr(model.lm_head, "weight", torch.nn.Parameter(torch.zeros(300, 128))),
        lambda model, _: setattr(model.lm_head, "weight", torch.nn.Parameter(torch.zeros(108, 128))),
        lambda model, _: model.lm_head.load_state_dict({"weight": torch.zeros(300, 128)}),
        lambda model, _: model.resize_token_embeddings(320),
    ],
    ids=["weight", "state_dict", "save_pretrained", "save", "restore", "optimize", "set", "set part", "load", "resize"],
)
def test_a_part_is_not_taken_for_the_whole(part, misuse, tmp_path):
    with pytest.raises(UnsupportedModelError, match=re.escape("(optimize it without torch_cpullm.distributed.init())")):
        misuse(part, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    assert state_of(part) is not None


def test_a_part_has_its_fused_forward_only(part):
    with torch.no_grad(), pytest.raises(UnsupportedModelError, match="output_attentions asks for attention weights"):
        part(input_ids=IDS, output_attentions=True)
    training = copy.deepcopy(part).train()
    with pytest.raises(UnsupportedModelError, match="training mode"):
        training(input_ids=IDS)


def test_a_part_may_be_copied(part):
    again = copy.deepcopy(part)
    with torch.no_grad():
        logits_BTV = part(input_ids=IDS).logits
        assert torch.equal(again(input_ids=IDS).logits, logits_BTV)
    assert logits_BTV.shape[-1] == 300 - 192


@pytest.mark.parametrize("tied", [False, True])
def test_from_pretrained(tied, tmp_path, monkeypatch):
    """Loading through transformers packs the same parts."""
    model = model_of(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(pretrained, "optimize_by", lambda *given: optimize_by(*given[:5], shard=Shard(1, 2)))
    loaded = type(model).from_pretrained(tmp_path, quantization_config=pretrained.CpuLlmConfig())
    expected = optimized(model, Config(), Shard(1, 2))
    for path, module in linears(loaded).items():
        assert torch.equal(module.packed, linears(expected)[path].packed)
    with pytest.raises(UnsupportedModelError, match="got the part of rank 1 of 2"):
        loaded.save_pretrained(tmp_path / "again")
