"""Decisions are pure: names and numbers in, a plan with reasons out."""

from dataclasses import replace

import pytest

from torch_cpullm.config import Config
from torch_cpullm.detect import (
    AttentionStructure,
    EmbeddingStructure,
    LayerStructure,
    LinearStructure,
    MlpStructure,
    Structure,
)
from torch_cpullm.formats import BF16, F32, INT4, INT8, WeightFormat
from torch_cpullm.plan import make_plan

ATTENTION = AttentionStructure("self_attn", ("q", "k", "v"), "o", None, None, 4, 2, 32, 0.2, 0.0, 0)
MLP = MlpStructure("mlp", ("gate", "up"), "down", "silu")
NAMES = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")


def structure(layers=2, matching=2, dtype="bfloat16", tied=False):
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
    linears.append(LinearStructure("head", 128, 64, dtype, "head", "embed" if tied else None))
    tables = (EmbeddingStructure("embed", 128, 64, dtype),)
    return Structure("Model", dtype, made, tuple(linears), tables, (), layers, True)


def test_defaults():
    plan = make_plan(structure(), Config())
    assert {linear.format for linear in plan.linears} == {INT8}
    assert all(layer.fuse_attention and layer.fuse_mlp for layer in plan.layers)
    assert plan.kv.format == "int8"
    assert "15 linear layers in int8" in repr(plan)


def test_the_head_may_differ():
    plan = make_plan(structure(), Config(weights="int8", lm_head="bf16"))
    assert plan.linears[-1].format == BF16
    assert "lm_head='bf16'" in plan.linears[-1].reason


@pytest.mark.parametrize(("dtype", "format"), [("float32", F32), ("bfloat16", BF16), ("float16", None)])
def test_keep_is_exact_or_nothing(dtype, format):
    plan = make_plan(structure(dtype=dtype), Config(weights="keep"))
    assert {linear.format for linear in plan.linears} == {format}
    assert all(layer.fuse_attention == (format is not None) for layer in plan.layers)


def test_int4_leaves_the_head_in_int8():
    plan = make_plan(structure(), Config(weights="int4", group_size=64, symmetric=False))
    assert {linear.format for linear in plan.linears[:-1]} == {WeightFormat("int4", "int8", 64, asymmetric=True)}
    assert plan.linears[-1].format == INT8
    everything = make_plan(structure(), Config(weights="int4", lm_head="int4"))
    assert {linear.format for linear in everything.linears} == {INT4}


def test_activations_may_stay_bf16():
    plan = make_plan(structure(), Config(weights="int8", group_size=128, activations="bf16"))
    assert {linear.format for linear in plan.linears} == {WeightFormat("int8", "bf16", 128)}


@pytest.mark.parametrize(
    ("choices", "dtype", "format", "shared"),
    [
        ({}, "bfloat16", INT8, "head"),
        ({"weights": "int4"}, "bfloat16", INT8, "head"),
        ({"embeddings": "keep"}, "bfloat16", None, None),
        ({"weights": "int4", "lm_head": "int4"}, "bfloat16", INT8, None),
        ({"weights": "bf16"}, "bfloat16", BF16, "head"),
        ({"weights": "bf16"}, "float32", None, None),  # the head is rounded, the table is to be kept
        ({"weights": "keep"}, "float32", F32, "head"),
        ({"weights": "keep"}, "float16", None, None),
    ],
)
def test_a_tied_table_is_stored_once_where_one_format_serves_both(choices, dtype, format, shared):
    (table,) = make_plan(structure(dtype=dtype, tied=True), Config(**choices)).embeddings
    assert (table.format, table.shared_with) == (format, shared)


def test_an_untied_table_has_bytes_of_its_own():
    (table,) = make_plan(structure(), Config()).embeddings
    assert (table.format, table.shared_with) == (INT8, None)


def test_weights_that_share_their_input_are_grouped():
    groups = [[linear.structure.path for linear in group] for group in make_plan(structure(), Config()).input_groups()]
    assert groups[:4] == [
        [f"layers.0.self_attn.{name}" for name in "qkv"],
        ["layers.0.self_attn.o"],
        ["layers.0.mlp.gate", "layers.0.mlp.up"],
        ["layers.0.mlp.down"],
    ]
    assert sum(len(group) for group in groups) == 15


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
