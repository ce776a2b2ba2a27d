"""One rank's part: everything is somebody's, once; formats keep their codes where they are cut; whole plans stay."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from torch_cpullm.plan import Shard, make_plan
from torch_cpullm.plan.plan import Plan
from torch_cpullm.plan.record import from_json, to_json
from torch_cpullm.plan.shard import (
    BLOCK,
    PANEL,
    Heads,
    Span,
    cuts,
    cuttable,
    share_columns,
    share_heads,
    share_of,
    share_rows,
)
from torch_cpullm.testing.formats import FORMATS

MODEL, CHANNELS = 256, 64
sizes = st.integers(1, 9)


def attention(heads, kv_heads, channels=CHANNELS, fused=False):
    qkv = ("qkv",) if fused else ("q", "k", "v")
    return AttentionStructure("attn", qkv, "o", None, None, heads, kv_heads, channels, 0.1, 0.0, 0)


def structure(heads=8, kv_heads=4, width=1024, rows=1000, *, fused=False, tied=False, mlp=True, decoder_layers=2):
    """Two layers of a model, and its head."""
    block = attention(heads, kv_heads, fused=fused)
    gate_up = ("gate_up",) if fused else ("gate", "up")
    outputs = {"q": heads * CHANNELS, "k": kv_heads * CHANNELS, "v": kv_heads * CHANNELS}
    outputs = {"qkv": sum(outputs.values())} if fused else outputs
    shapes = {f"attn.{name}": (count, MODEL) for name, count in outputs.items()}
    shapes |= {"attn.o": (MODEL, heads * CHANNELS)}
    shapes |= {f"mlp.{name}": ((2 if fused else 1) * width, MODEL) for name in gate_up} if mlp else {}
    shapes |= {"mlp.down": (MODEL, width)} if mlp else {}
    layers = tuple(
        LayerStructure(
            f"layers.{i}",
            "Layer",
            replace(block, layer_index=i),
            MlpStructure("mlp", gate_up, "down", "silu") if mlp else None,
            "n1",
            None,
            "n2",
            None,
            1e-6,
            0.0,
        )
        for i in range(2)
    )
    linears = [
        LinearStructure(f"layers.{i}.{name}", *shape, "bfloat16", "projection", None)
        for i in range(2)
        for name, shape in shapes.items()
    ]
    linears.append(LinearStructure("head", rows, MODEL, "bfloat16", "head", "embed" if tied else None))
    table = EmbeddingStructure("embed", rows, MODEL, "bfloat16")
    return Structure("Model", "bfloat16", layers, tuple(linears), (table,), (), decoder_layers, True)


def parts(plan):
    return {linear.structure.path: linear.part for linear in plan.linears}


def everyone(make, size):
    return [make(Shard(rank, size)) for rank in range(size)]


def covers(spans, count):
    """Whether the spans, in order, are 0 .. count."""
    return [span.first for span in spans] == [0, *(span.stop for span in spans[:-1])] and spans[-1].stop == count


@pytest.mark.parametrize(("rank", "size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_there_is_not(rank, size):
    with pytest.raises(ValueError, match="rank: expected one of 0 to"):
        Shard(rank, size)


@given(st.integers(0, 1000), sizes)
def test_shares_differ_by_one(count, size):
    shares = everyone(lambda shard: share_of(count, shard), size)
    assert covers(shares, count)
    assert [len(share) for share in shares] == sorted((len(share) for share in shares), reverse=True)
    assert len(shares[0]) - len(shares[-1]) <= 1


@given(st.integers(1, 8), st.integers(1, 8), sizes)
def test_each_query_head_is_with_its_kv_head(kv_heads, each, size):
    block = attention(kv_heads * each, kv_heads)
    shares = everyone(lambda shard: share_heads(block, shard), size)
    if size > kv_heads and (size % kv_heads or each < size // kv_heads):
        assert shares == [None] * size
        return
    assert covers([heads.query for heads in shares], block.heads)
    for heads in shares:
        assert len(heads.kv) >= 1
        assert len(heads.query) % len(heads.kv) == 0
        per_kv = len(heads.query) // len(heads.kv)  # as the kernels count
        for i in range(len(heads.query)):
            assert (heads.query.first + i) // each == heads.kv.first + i // per_kv


@pytest.mark.parametrize(
    ("heads", "kv_heads", "shard", "expected"),
    [
        (32, 8, Shard(1, 3), Heads(Span(12, 24), Span(3, 6))),
        (32, 8, Shard(2, 3), Heads(Span(24, 32), Span(6, 8))),
        (14, 2, Shard(1, 2), Heads(Span(7, 14), Span(1, 2))),
        (14, 2, Shard(0, 3), None),
        (14, 2, Shard(2, 4), Heads(Span(7, 11), Span(1, 2))),  # 7 query heads for 2 ranks
        (14, 2, Shard(3, 4), Heads(Span(11, 14), Span(1, 2))),
        (71, 1, Shard(1, 2), Heads(Span(36, 71), Span(0, 1))),
        (4, 2, Shard(0, 8), None),
        (16, 2, Shard(3, 4), Heads(Span(12, 16), Span(1, 2))),
        (4, 1, Shard(2, 4), Heads(Span(2, 3), Span(0, 1))),
    ],
)
def test_heads(heads, kv_heads, shard, expected):
    assert share_heads(attention(heads, kv_heads), shard) == expected


@given(st.integers(1, 40_000), sizes)
def test_columns_are_cut_at_blocks_or_panels(width, size):
    shares = everyone(lambda shard: share_columns(width, shard), size)
    if width // PANEL < size:
        assert shares == [None] * size
        return
    unit = BLOCK if width // BLOCK >= size else PANEL
    assert covers(shares, width)
    assert cuts(shares) % unit == 0
    assert max(map(len, shares)) - min(map(len, shares)) < 2 * unit
    assert min(map(len, shares)) > 0


@given(st.integers(1, 40_000), sizes)
def test_rows_of_the_head_are_cut_at_panels(rows, size):
    shares = everyone(lambda shard: share_rows(rows, shard), size)
    if rows // PANEL < size:
        assert shares == [None] * size
        return
    assert covers(shares, rows)
    assert cuts(shares) % PANEL == 0


@pytest.mark.parametrize(
    ("format", "cut", "expected"),
    [
        (F32, 3, F32),
        (BF16, 16, BF16),
        (INT8, 16, INT8),
        (INT4, 512, INT4),
        (INT4, 0, INT4),
        (INT4, 448, WeightFormat("int4", "int8", 32, asymmetric=True)),
        (WeightFormat("int4", "int8", 128), 448, WeightFormat("int4", "int8", 64, asymmetric=True)),
        (WeightFormat("int4", "bf16", 128, asymmetric=True), 448, WeightFormat("int4", "bf16", 64, asymmetric=True)),
        (WeightFormat("int8", "bf16", 128), 64, WeightFormat("int8", "bf16", 64)),
        (INT4, 80, INT8),
        (WeightFormat("int4", "bf16", 32), 16, WeightFormat("int8", "bf16")),
        (WeightFormat("int8", "int8", 32), 80, INT8),
    ],
)
def test_a_format_that_can_be_cut(format, cut, expected):
    assert cuttable(format, cut) == expected


@pytest.mark.parametrize("name", FORMATS)
@given(cut=st.integers(1, 100).map(lambda n: 16 * n))
def test_every_format_finds_one(name, cut):
    found = cuttable(FORMATS[name], cut)
    assert cut % found.cut_unit == 0
    assert found.activation == FORMATS[name].activation
    assert (found == FORMATS[name]) == (cut % FORMATS[name].cut_unit == 0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_each_weight_is_somewhere_once(size, fused):
    """Rows and inputs of all ranks together are the whole's; the bias of what is added up comes once."""
    made = structure(fused=fused)
    plans = everyone(lambda shard: make_plan(made, Config(), shard), size)
    for linear in made.linears:
        found = [parts(plan)[linear.path] for plan in plans]
        cells = [(n, part.inputs) for part in found for span in part.rows for n in range(span.first, span.stop)]
        if linear.path.endswith((".o", ".down")):
            assert covers([part.inputs for part in found], linear.in_features)
            assert [part.bias for part in found] == [True] + [False] * (size - 1)
            assert all(part.rows == (Span(0, linear.out_features),) for part in found)
        else:
            assert sorted(n for n, _ in cells) == list(range(linear.out_features))
            assert {inputs for _, inputs in cells} == {Span(0, linear.in_features)}
            assert all(part.bias for part in found)
        assert all(len({span.first for span in part.rows}) == len(part.rows) for part in found)


def test_a_fused_weight_is_cut_in_each_of_its_parts():
    plan = make_plan(structure(fused=True), Config(), Shard(1, 2))
    channels = CHANNELS
    begins = (4 * channels, (8 + 2) * channels, (8 + 4 + 2) * channels)
    widths = (4 * channels, 2 * channels, 2 * channels)
    expected = tuple(Span(first, first + width) for first, width in zip(begins, widths, strict=True))
    assert parts(plan)["layers.0.attn.qkv"].rows == expected
    assert parts(plan)["layers.1.mlp.gate_up"].rows == (Span(512, 1024), Span(1536, 2048))
    assert plan.layers[1].share.columns == Span(512, 1024)


def test_more_ranks_than_kv_heads():
    plans = everyone(lambda shard: make_plan(structure(heads=8, kv_heads=2), Config(), shard), 4)
    assert [plan.layers[0].share.heads.kv for plan in plans] == [Span(0, 1), Span(0, 1), Span(1, 2), Span(1, 2)]
    keys = [parts(plan)["layers.0.attn.k"].rows[0] for plan in plans]
    assert keys == [Span(0, 64), Span(0, 64), Span(64, 128), Span(64, 128)]
    assert any("each of which 2 ranks have" in note for note in plans[0].sharing)


def test_what_does_not_divide_is_replicated_with_a_reason():
    plan = make_plan(structure(heads=14, kv_heads=2, width=96, rows=100), Config(), Shard(1, 3))
    assert not plan.is_partial
    assert plan.sharing == (
        "attention replicated: 14 heads over 2 KV heads do not divide among 3 ranks",
        "MLP replicated: 96 columns are less than a panel of 64 for each of 3 ranks",
        "head replicated: 100 rows are less than a panel of 64 for each of 3 ranks",
    )


def test_a_foreign_mlp_is_replicated():
    plan = make_plan(structure(mlp=False), Config(), Shard(1, 2))
    assert parts(plan)["layers.0.attn.o"] is not None
    assert plan.layers[0].share.columns is None
    assert "MLP replicated: it is the model's own" in plan.sharing


@pytest.mark.parametrize(
    ("made", "config", "reason"),
    [
        (structure(decoder_layers=3), Config(), "2 of 3 decoder layers"),
        (structure(), Config(attention="keep"), "attention='keep'"),
    ],
)
def test_without_a_pool_nothing_is_shared(made, config, reason):
    plan = make_plan(made, config, Shard(0, 2))
    assert not plan.is_partial
    assert len(plan.sharing) == 1
    assert plan.sharing[0].startswith("replicated on 2 ranks: ")
    assert reason in plan.sharing[0]


def test_a_failed_proof_takes_shares_and_formats_back():
    """What is left is what one rank would have, linear layers included."""
    made = structure(heads=14, kv_heads=2)
    plan, alone = make_plan(made, Config(weights="int4"), Shard(0, 2)), make_plan(made, Config(weights="int4"))
    assert plan.linears != alone.linears
    kind = plan.layers[0].structure.kind()
    assert replace(plan.without(kind, "it differs"), shard=Shard(), sharing=()) == alone.without(kind, "it differs")


def test_where_int4_is_cut_inside_a_block():
    plan = make_plan(structure(heads=14, kv_heads=2), Config(weights="int4"), Shard(0, 2))
    by_path = {linear.structure.path: linear for linear in plan.linears}
    assert by_path["layers.0.attn.o"].format == WeightFormat("int4", "int8", 32, asymmetric=True)
    assert "int4 g32 cannot be cut at multiples of 448 inputs" in by_path["layers.0.attn.o"].reason
    assert by_path["layers.0.attn.q"].format == by_path["layers.0.mlp.down"].format == INT4
    assert [note for note in plan.sharing if note.startswith("o is cut")] == [
        "o is cut at multiples of 448 inputs, where its scales are stored together; it is packed in int4 g32 "
        "asymmetric",
        "o is cut at multiples of 448 inputs: its activations are quantised in other groups of 256 than one rank's",
    ]


def test_a_line_for_each_decision():
    plan = make_plan(structure(tied=True), Config(), Shard(1, 2))
    assert plan.sharing == (
        "rank 1 of 2: query heads 4-7 of 8, KV heads 2-3 of 4",
        "rank 1 of 2: MLP columns 512-1023 of 1024",
        "rank 1 of 2: head rows 512-999 of 1000; every rank has all embeddings, and so the tied head is a copy of its "
        "rows",
    )


def test_a_tied_table_does_not_read_a_part():
    whole, part = (make_plan(structure(tied=True), Config(), shard).embeddings[0] for shard in (Shard(), Shard(0, 2)))
    assert (whole.format, whole.shared_with) == (INT8, "head")
    assert (part.format, part.shared_with) == (INT8, None)


@pytest.mark.parametrize("config", [Config(), Config(weights="int4"), Config(weights="keep")])
@pytest.mark.parametrize("tied", [False, True])
def test_one_rank_has_the_plan_of_before(config, tied):
    """Nor does its record say more: models that were saved before load, and those saved now load there."""
    plan = make_plan(structure(tied=tied), config, Shard(0, 1))
    assert plan == make_plan(structure(tied=tied), config)
    assert not plan.is_partial
    record = to_json(plan)
    assert set(record) == {"structure", "config", "linears", "embeddings", "layers", "kv"}
    assert set(record["linears"][0]) == {"structure", "format", "reason"}
    assert set(record["layers"][0]) == {"structure", "fuse_attention", "fuse_mlp", "reason"}
    assert from_json(Plan, json.loads(json.dumps(record))) == plan


@pytest.mark.parametrize("fused", [False, True])
def test_a_part_comes_back_from_its_record(fused):
    plan = make_plan(structure(fused=fused), Config(weights="int4"), Shard(1, 3))
    assert from_json(Plan, json.loads(json.dumps(to_json(plan)))) == plan
