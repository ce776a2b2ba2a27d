"""Layers of other forms among ranks: heads that lie in groups, MLPs without a gate, halves that run in parallel."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plan.test_shard import CHANNELS, structure
from torch_cpullm.config import Config
from torch_cpullm.plan import Shard, make_plan
from torch_cpullm.plan.divide import divide_layer
from torch_cpullm.plan.shard import share_heads


def with_groups(heads, kv_heads):
    """A model whose fused weight has query heads, key and value of each KV head together."""
    model = structure(heads, kv_heads, fused=True)
    layers = tuple(replace(each, attention=replace(each.attention, qkv_in_groups=True)) for each in model.layers)
    return replace(model, layers=layers)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.data())
def test_a_rank_has_the_rows_of_its_heads_in_their_order(kv_heads, each, size, data):
    model = with_groups(kv_heads * each, kv_heads)
    shard = Shard(data.draw(st.integers(0, size - 1)), size)
    layer, linears = model.layers[0], {linear.path: linear for linear in model.linears}
    heads = share_heads(layer.attention, shard)
    pieces = divide_layer(layer, linears, shard, fuse_mlp=True).pieces
    if heads is None:
        assert "layers.0.attn.qkv" not in pieces
        return
    names = [
        name
        for kv in range(kv_heads)
        for name in (
            *((f"q{head}", head) for head in range(kv * each, (kv + 1) * each)),
            (f"k{kv}", kv),
            (f"v{kv}", kv),
        )
    ]
    expected = [
        name for name, place in names if place in range(*vars(heads.query if name[0] == "q" else heads.kv).values())
    ]
    rows = [row for span in pieces["layers.0.attn.qkv"].part.rows for row in range(span.first, span.stop)]
    assert [names[row // CHANNELS][0] for row in rows[::CHANNELS]] == expected
    assert rows == [first + row for first in rows[::CHANNELS] for row in range(CHANNELS)]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_weight_without_a_gate_is_cut_once(rank):
    model = structure(width=1024)
    layers = tuple(replace(each, mlp=replace(each.mlp, gate_up=("up",), gated=False)) for each in model.layers)
    plan = make_plan(replace(model, layers=layers), Config(), Shard(rank, 2))
    parts = {linear.structure.path: linear.part for linear in plan.linears}
    assert [(span.first, span.stop) for span in parts["layers.0.mlp.up"].rows] == [(512 * rank, 512 * rank + 512)]
    assert parts["layers.0.mlp.down"].bias == (rank == 0)


def test_parallel_halves_are_fused_together_or_not_at_all():
    model = structure()
    layers = tuple(replace(each, parallel=True) for each in model.layers)
    assert all(each.fuse_mlp for each in make_plan(replace(model, layers=layers), Config()).layers)
    left = tuple(linear for linear in model.linears if linear.path != "layers.0.mlp.down")
    plan = make_plan(replace(model, layers=layers, linears=left), Config())
    assert not any(each.fuse_attention for each in plan.layers)
    assert not plan.layers[0].fuse_mlp
