"""Decisions are pure: names and numbers in, a plan with reasons out."""

from dataclasses import replace

import pytest

from torch_cpullm.config import Config
from torch_cpullm.detect import AttentionStructure, LayerStructure, LinearStructure, MlpStructure, Structure
from torch_cpullm.plan import make_plan

ATTENTION = AttentionStructure("self_attn", ("q", "k", "v"), "o", None, None, 4, 2, 32, 0.2, 0.0, 0)
MLP = MlpStructure("mlp", ("gate", "up"), "down", "silu")
NAMES = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")


def structure(layers=2, matching=2, dtype="bfloat16"):
    made = tuple(
        LayerStructure(
            f"layers.{i}", "Layer", replace(ATTENTION, layer_index=i), MLP, "n1", None, "n2", None, 1e-6, 0.0
        )
        for i in range(matching)
    )
    linears = [
        LinearStructure(f"layers.{i}.{name}", 64, 64, dtype, "projection", None)
        for i in range(layers)
        for name in NAMES
    ]
    linears.append(LinearStructure("head", 128, 64, dtype, "head", None))
    return Structure("Model", dtype, made, tuple(linears), (), layers, True)


def test_defaults():
    plan = make_plan(structure(), Config())
    assert {linear.format for linear in plan.linears} == {"int8"}
    assert all(layer.fuse_attention and layer.fuse_mlp for layer in plan.layers)
    assert plan.kv.format == "int8"
    assert "15 linear layers in int8" in repr(plan)


def test_the_head_may_differ():
    plan = make_plan(structure(), Config(weights="int8", lm_head="bf16"))
    assert plan.linears[-1].format == "bf16"
    assert "lm_head='bf16'" in plan.linears[-1].reason


@pytest.mark.parametrize(("dtype", "format"), [("float32", "f32"), ("bfloat16", "bf16"), ("float16", None)])
def test_keep_is_exact_or_nothing(dtype, format):
    plan = make_plan(structure(dtype=dtype), Config(weights="keep"))
    assert {linear.format for linear in plan.linears} == {format}
    assert all(layer.fuse_attention == (format is not None) for layer in plan.layers)


def test_one_foreign_layer_keeps_the_cache():
    plan = make_plan(structure(layers=3, matching=2), Config())
    assert plan.kv.format is None
    assert "2 of 3" in plan.kv.reason
    assert not any(layer.fuse_attention for layer in plan.layers)


def test_attention_keep():
    plan = make_plan(structure(), Config(attention="keep"))
    assert plan.kv.format is None
    assert not any(layer.fuse_attention for layer in plan.layers)


def test_a_failed_proof_is_carried_through():
    plan = make_plan(structure(), Config())
    less = plan.without(plan.layers[0].structure.kind(), "it differs")
    assert not any(layer.fuse_attention or layer.fuse_mlp for layer in less.layers)
    assert {layer.reason for layer in less.layers} == {"it differs"}
    assert less.kv.format is None
