"""The fused halves of a layer against their definitions, and against themselves cut otherwise."""

from dataclasses import replace

import pytest
import torch

from torch_cpullm.ops import block as ops
from torch_cpullm.ops.attention import KvPages, ScoreRules, kv_append, paged_attention
from torch_cpullm.ops.layers import KvLayers, LayerNumbers, LayerWeights, decoder_layers, stack_layers
from torch_cpullm.ops.linear import linear, pack
from torch_cpullm.ops.rowwise import gated, rms_norm, rope
from torch_cpullm.reference import block as reference
from torch_cpullm.testing.formats import EACH_KERNEL, FORMATS
from torch_cpullm.testing.guard import guarded
from torch_cpullm.testing.pages import empty_pages, filled_pages

D, F, H, G, C = 96, 160, 6, 2, 32


def dense_attention(head_norms, output_norm, offset=0.0):
    def gain(width):
        return torch.randn(width) * 0.2 + (1.0 - offset)

    return reference.DenseAttention(
        q=torch.randn(H * C, D) / 8,
        k=torch.randn(G * C, D) / 8,
        v=torch.randn(G * C, D) / 8,
        o=torch.randn(D, H * C) / 8,
        input_norm_D=gain(D),
        query_norm_C=gain(C) if head_norms else None,
        key_norm_C=gain(C) if head_norms else None,
        output_norm_D=gain(D) if output_norm else None,
        heads=H,
        kv_heads=G,
        scale=C**-0.5,
        soft_cap=0.0,
        eps=1e-6,
        offset=offset,
    )


def packed_attention(dense, format, fused):
    rows = [dense.q, dense.k, dense.v]
    return ops.AttentionWeights(
        qkv=[pack(torch.cat(rows), None, FORMATS[format])]
        if fused
        else [pack(row, None, FORMATS[format]) for row in rows],
        output=pack(dense.o, None, FORMATS[format]),
        input_norm_D=dense.input_norm_D,
        query_norm_C=dense.query_norm_C,
        key_norm_C=dense.key_norm_C,
        output_norm_D=dense.output_norm_D,
    )


def rope_tables(batch, tokens, start=0):
    angles = (torch.arange(tokens) + start)[None, :, None] * torch.logspace(0, -3, C // 2).repeat(2)
    return angles.expand(batch, -1, -1).cos(), angles.expand(batch, -1, -1).sin()


def run_attention(hidden, dense, weights, kv, rope, mask=None):
    numbers = ops.AttentionNumbers(dense.heads, dense.kv_heads, dense.scale, dense.soft_cap)
    return ops.attention_block(hidden, weights, rope, kv, mask, numbers, ops.NormNumbers(dense.eps, dense.offset))


def kv_format_for(format):
    return format if format in ("f32", "bf16") else "int8"


def close(got, expected, format):
    """Formats that round to codes may land on another code than the definition in float64: a step of 1/127 of a few."""
    allowed = {"f32": 2e-5, "bf16": 2e-2}.get(format, 3e-2)
    assert float((got - expected).norm() / expected.norm()) < allowed


@pytest.mark.parametrize("format", EACH_KERNEL)
@pytest.mark.parametrize(
    ("head_norms", "output_norm", "fused", "offset"),
    [(False, False, False, 0.0), (True, False, False, 0.0), (True, True, False, 1.0), (False, False, True, 0.0)],
)
def test_attention_block(format, head_norms, output_norm, fused, offset):
    dense = dense_attention(head_norms, output_norm, offset)
    hidden, rope = torch.randn(2, 41, D), rope_tables(2, 41)
    kv_format = kv_format_for(format)
    kv = empty_pages(2, 41, G, C, kv_format)
    got = run_attention(hidden, dense, packed_attention(dense, format, fused), kv, rope)
    close(got, reference.attention_block(hidden, dense, rope, (FORMATS[format], kv_format)), format)


def test_attention_block_with_soft_cap_and_padding():
    dense = replace(dense_attention(False, True, 1.0), soft_cap=5.0)
    hidden, rope = torch.randn(2, 12, D), rope_tables(2, 12)
    mask = torch.ones(2, 1, 12, 12, dtype=torch.bool).tril()
    mask[0, :, :, :5] = False
    got = run_attention(
        hidden, dense, packed_attention(dense, "f32", False), empty_pages(2, 12, G, C, "f32"), rope, mask
    )
    close(got, reference.attention_block(hidden, dense, rope, (FORMATS["f32"], "f32"), mask), "f32")


def attention_by_parts(hidden, dense, weights, kv, tables, mask=None):
    """The block as its definition reads, each step an op of its own."""
    batch, tokens, _ = hidden.shape
    rows = rms_norm(hidden, dense.input_norm_D, dense.eps, dense.offset)
    heads = torch.cat([linear(rows, weight) for weight in weights.qkv], -1).view(batch, tokens, -1, C)
    q, k, v = heads.split([dense.heads, dense.kv_heads, dense.kv_heads], dim=2)
    if dense.query_norm_C is not None:
        q, k = (
            rms_norm(x, gain, dense.eps, dense.offset) for x, gain in ((q, dense.query_norm_C), (k, dense.key_norm_C))
        )
    kv_append(kv, rope(k, *tables), v)
    attended = paged_attention(rope(q, *tables), kv, dense.scale, ScoreRules(mask=mask, soft_cap=dense.soft_cap))
    out = linear(attended.flatten(2), weights.output)
    if dense.output_norm_D is not None:
        out = rms_norm(out, dense.output_norm_D, dense.eps, dense.offset)
    return hidden + out


@pytest.mark.parametrize("format", EACH_KERNEL)
@pytest.mark.parametrize("norms", [False, True])
def test_attention_block_is_its_parts_bit_for_bit(format, norms):
    """Each part is held to its definition in a file of its own; here nothing may be added to them, nor left out."""
    dense = replace(dense_attention(norms, norms, 1.0), soft_cap=5.0 if norms else 0.0)
    weights = packed_attention(dense, format, not norms)
    for tokens, past, threads in ((1, 0, 1), (1, 299, 4), (7, 40, 3), (130, 0, 2)):
        torch.set_num_threads(threads)
        old = filled_pages(*torch.randn(2, 2, past + tokens, G, C), torch.full((2,), past), kv_format_for(format))
        hidden, tables = torch.randn(2, tokens, D), rope_tables(2, tokens, past)
        mask = torch.rand(2, 1, tokens, past + tokens) < 0.7 if norms else None
        new = old._replace(pages=old.pages.clone())
        got = run_attention(hidden, dense, weights, new, tables, mask)
        assert torch.equal(got, attention_by_parts(hidden, dense, weights, old, tables, mask))
        assert torch.equal(new.pages, old.pages)


def test_attention_block_with_one_kv_head_split_between_threads():
    dense = replace(dense_attention(False, False), kv_heads=1)
    dense = replace(dense, k=dense.k[:C], v=dense.v[:C])
    weights, tables = packed_attention(dense, "int8", False), rope_tables(1, 1, 700)
    old = filled_pages(*torch.randn(2, 1, 701, 1, C), torch.tensor([700]), "int8")
    hidden = torch.randn(1, 1, D)
    torch.set_num_threads(1)
    expected = run_attention(hidden, dense, weights, old._replace(pages=old.pages.clone()), tables)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        assert torch.equal(run_attention(hidden, dense, weights, old, tables), expected)


@pytest.mark.parametrize("format", EACH_KERNEL)
def test_a_bad_token_reaches_who_attends_to_it(format):
    dense = dense_attention(True, False)
    weights, tables, hidden = packed_attention(dense, format, False), rope_tables(2, 20), torch.randn(2, 20, D)
    clean = run_attention(hidden, dense, weights, empty_pages(2, 20, G, C, kv_format_for(format)), tables)
    hidden[0, 11, 3] = float("nan")
    got = run_attention(hidden, dense, weights, empty_pages(2, 20, G, C, kv_format_for(format)), tables)
    assert torch.equal(got[0, :11], clean[0, :11])
    assert got[0, 11:].isnan().all()
    assert torch.equal(got[1], clean[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strided_half_and_closed_inputs(dtype):
    """The same bits from strided hidden states and tables, and from tensors that end at a closed page."""
    dense, mlp = dense_attention(True, True), dense_mlp("silu", True)
    weights, tables = packed_attention(dense, "int8", True), rope_tables(1, 9)
    hidden = torch.randn(9, 2, D).to(dtype)
    strided, plain = hidden.transpose(0, 1), hidden.transpose(0, 1).contiguous()
    wide = run_attention(plain.float(), dense, weights, empty_pages(2, 9, G, C, "int8"), tables).to(dtype)
    closed = ops.AttentionWeights(*([guarded(x) for x in weights.qkv], *map(guarded, list(weights)[1:-1])))
    for x, w in ((strided, weights), (plain, weights), (guarded(plain), closed)):
        kv = empty_pages(2, 9, G, C, "int8")
        got = run_attention(x, dense, w, kv._replace(pages=guarded(kv.pages[:-1])), tuple(map(guarded, tables)))
        assert got.dtype == dtype
        assert torch.equal(got, wide)
    assert torch.equal(run_mlp(strided, mlp, "int8", False), run_mlp(plain.float(), mlp, "int8", False).to(dtype))


@pytest.mark.parametrize(("batch", "tokens"), [(0, 3), (2, 0)])
def test_nothing_to_do(batch, tokens):
    dense, hidden = dense_attention(True, True), torch.empty(batch, tokens, D)
    kv = empty_pages(2, 9, G, C, "int8")
    before = kv.pages.clone()
    kv = kv._replace(table_BP=kv.table_BP[:batch], past_B=kv.past_B[:batch])
    got = run_attention(hidden, dense, packed_attention(dense, "int8", False), kv, rope_tables(1, tokens))
    assert got.shape == hidden.shape
    assert torch.equal(kv.pages, before)
    assert run_mlp(hidden, dense_mlp("silu", True), "int8", False).shape == hidden.shape


@pytest.mark.parametrize(
    ("format", "kv_format"), [("f32", "f32"), ("bf16", "bf16"), ("int8", "int8"), ("int4 g32", "int8")]
)
def test_token_by_token_gives_the_bits_of_one_call(format, kv_format):
    dense = dense_attention(True, False)
    weights = packed_attention(dense, format, False)
    hidden = torch.randn(2, 70, D)
    whole = run_attention(hidden, dense, weights, empty_pages(2, 70, G, C, kv_format), rope_tables(2, 70))
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        kv = empty_pages(2, 70, G, C, kv_format)
        start = 0
        for stop in (1, 2, 34, 35, 70):
            past = torch.full((2,), start, dtype=torch.int32)
            step = KvPages(kv.pages, kv.table_BP, past, G, kv_format)
            rope = rope_tables(2, stop - start, start)
            got = run_attention(hidden[:, start:stop], dense, weights, step, rope)
            assert torch.equal(got, whole[:, start:stop])
            start = stop


def dense_mlp(activation, output_norm, offset=0.0):
    return reference.DenseMlp(
        gate=torch.randn(F, D) / 8,
        up=torch.randn(F, D) / 8,
        down=torch.randn(D, F) / 8,
        input_norm_D=torch.rand(D) + 0.5 - offset,
        output_norm_D=torch.rand(D) + 0.5 - offset if output_norm else None,
        activation=activation,
        eps=1e-6,
        offset=offset,
    )


def run_mlp(hidden, dense, format, fused):
    parts = [dense.gate, dense.up]
    weights = ops.MlpWeights(
        gate_up=[pack(torch.cat(parts), None, FORMATS[format])]
        if fused
        else [pack(part, None, FORMATS[format]) for part in parts],
        down=pack(dense.down, None, FORMATS[format]),
        input_norm_D=dense.input_norm_D,
        output_norm_D=dense.output_norm_D,
    )
    return ops.mlp_block(hidden, weights, dense.activation, ops.NormNumbers(dense.eps, dense.offset))


@pytest.mark.parametrize("format", EACH_KERNEL)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf"])
@pytest.mark.parametrize(("output_norm", "fused", "offset"), [(False, False, 0.0), (True, True, 1.0)])
def test_mlp_block(format, activation, output_norm, fused, offset):
    dense = dense_mlp(activation, output_norm, offset)
    hidden = torch.randn(2, 9, D)
    close(run_mlp(hidden, dense, format, fused), reference.mlp_block(hidden, dense, FORMATS[format]), format)


@pytest.mark.parametrize("format", EACH_KERNEL)
def test_mlp_rows_depend_on_nothing_else(format):
    dense = dense_mlp("silu", True)
    hidden = torch.randn(3, 50, D)
    expected = run_mlp(hidden, dense, format, False)
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        assert torch.equal(run_mlp(hidden, dense, format, False), expected)
        assert torch.equal(run_mlp(hidden[1:2, 7:8], dense, format, False), expected[1:2, 7:8])


@pytest.mark.parametrize("format", EACH_KERNEL)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf"])
def test_mlp_block_is_its_parts_bit_for_bit(format, activation):
    for rows, fused, output_norm in ((1, False, False), (9, True, True), (600, False, True)):
        dense, hidden = dense_mlp(activation, output_norm, 1.0), torch.randn(1, rows, D)
        x = rms_norm(hidden, dense.input_norm_D, dense.eps, dense.offset)
        gate, up = (linear(x, pack(part, None, FORMATS[format])) for part in (dense.gate, dense.up))
        out = linear(gated(gate, up, activation), pack(dense.down, None, FORMATS[format]))
        if output_norm:
            out = rms_norm(out, dense.output_norm_D, dense.eps, dense.offset)
        assert torch.equal(run_mlp(hidden, dense, format, fused), hidden + out)


@pytest.mark.parametrize("format", EACH_KERNEL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_of_an_mlp_stays_alone(format, bad):
    dense, hidden = dense_mlp("silu", True), torch.randn(2, 8, D)
    clean = run_mlp(hidden, dense, format, False)
    hidden[1, 3, 5] = bad
    got = run_mlp(hidden, dense, format, False)
    assert got[1, 3].isnan().any()
    got[1, 3] = clean[1, 3]
    assert torch.equal(got, clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("head_norms", "output_norm", "fused"), [(False, False, False), (True, True, True)])
def test_layers_give_the_bits_of_their_blocks(head_norms, output_norm, fused, dtype):
    attention = [packed_attention(dense_attention(head_norms, output_norm), "int8", fused) for _ in range(3)]
    mlp = [
        ops.MlpWeights(
            [pack(torch.randn(2 * F, D) / 8, None, FORMATS["int8"])]
            if fused
            else [pack(torch.randn(F, D) / 8, None, FORMATS["int8"]) for _ in range(2)],
            pack(torch.randn(D, F) / 8, None, FORMATS["int8"]),
            torch.rand(D),
            torch.rand(D) if output_norm else None,
        )
        for _ in range(3)
    ]
    numbers = LayerNumbers(ops.AttentionNumbers(H, G, C**-0.5, 0.0), ops.NormNumbers(1e-6, 0.0), "gelu_tanh")
    stack = stack_layers([LayerWeights(*pair) for pair in zip(attention, mlp, strict=True)], numbers)
    hidden, rope = torch.randn(2, 5, D).to(dtype), tuple(table.to(dtype) for table in rope_tables(2, 5))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    mask[1, :, :, 0] = False
    one, other = ([empty_pages(2, 5, G, C, "int8") for _ in range(3)] for _ in range(2))
    expected = hidden
    for weights, mlp_weights, kv in zip(attention, mlp, one, strict=True):
        expected = ops.attention_block(expected, weights, rope, kv, mask, numbers.attention, numbers.norm)
        expected = ops.mlp_block(expected, mlp_weights, numbers.activation, numbers.norm)
    got = decoder_layers(hidden, stack, rope, KvLayers([kv.pages for kv in other], *other[0][1:]), mask)
    assert got.dtype == dtype
    assert torch.equal(got, expected)
    assert all(torch.equal(a.pages, b.pages) for a, b in zip(one, other, strict=True))
