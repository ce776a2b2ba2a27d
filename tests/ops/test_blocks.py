"""The fused halves of a layer against their definitions, and against themselves cut otherwise."""

from dataclasses import replace

import pytest
import torch

from torch_cpullm.ops import block as ops
from torch_cpullm.ops.attention import KvPages
from torch_cpullm.ops.linear import pack
from torch_cpullm.reference import block as reference
from torch_cpullm.testing.pages import empty_pages

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
        qkv=[pack(torch.cat(rows), None, format)] if fused else [pack(row, None, format) for row in rows],
        output=pack(dense.o, None, format),
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


def close(got, expected, format):
    """Formats that round to codes may land on another code than the definition in float64: a step of 1/127 of a few."""
    allowed = {"f32": 2e-5, "bf16": 2e-2, "int8": 3e-2}[format]
    assert float((got - expected).norm() / expected.norm()) < allowed


@pytest.mark.parametrize("format", ["f32", "bf16", "int8"])
@pytest.mark.parametrize(
    ("head_norms", "output_norm", "fused", "offset"),
    [(False, False, False, 0.0), (True, False, False, 0.0), (True, True, False, 1.0), (False, False, True, 0.0)],
)
def test_attention_block(format, head_norms, output_norm, fused, offset):
    dense = dense_attention(head_norms, output_norm, offset)
    hidden, rope = torch.randn(2, 41, D), rope_tables(2, 41)
    kv_format = "int8" if format == "int8" else "f32"
    kv = empty_pages(2, 41, G, C, kv_format)
    got = run_attention(hidden, dense, packed_attention(dense, format, fused), kv, rope)
    close(got, reference.attention_block(hidden, dense, rope, (format, kv_format)), format)


def test_attention_block_with_soft_cap_and_padding():
    dense = replace(dense_attention(False, True, 1.0), soft_cap=5.0)
    hidden, rope = torch.randn(2, 12, D), rope_tables(2, 12)
    mask = torch.ones(2, 1, 12, 12, dtype=torch.bool).tril()
    mask[0, :, :, :5] = False
    got = run_attention(
        hidden, dense, packed_attention(dense, "f32", False), empty_pages(2, 12, G, C, "f32"), rope, mask
    )
    close(got, reference.attention_block(hidden, dense, rope, ("f32", "f32"), mask), "f32")


@pytest.mark.parametrize(("format", "kv_format"), [("f32", "f32"), ("bf16", "bf16"), ("int8", "int8")])
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
        gate_up=[pack(torch.cat(parts), None, format)] if fused else [pack(part, None, format) for part in parts],
        down=pack(dense.down, None, format),
        input_norm_D=dense.input_norm_D,
        output_norm_D=dense.output_norm_D,
    )
    return ops.mlp_block(hidden, weights, dense.activation, ops.NormNumbers(dense.eps, dense.offset))


@pytest.mark.parametrize("format", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf"])
@pytest.mark.parametrize(("output_norm", "fused", "offset"), [(False, False, 0.0), (True, True, 1.0)])
def test_mlp_block(format, activation, output_norm, fused, offset):
    dense = dense_mlp(activation, output_norm, offset)
    hidden = torch.randn(2, 9, D)
    close(run_mlp(hidden, dense, format, fused), reference.mlp_block(hidden, dense, format), format)


@pytest.mark.parametrize("format", ["f32", "bf16", "int8"])
def test_mlp_rows_depend_on_nothing_else(format):
    dense = dense_mlp("silu", True)
    hidden = torch.randn(3, 50, D)
    expected = run_mlp(hidden, dense, format, False)
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        assert torch.equal(run_mlp(hidden, dense, format, False), expected)
        assert torch.equal(run_mlp(hidden[1:2, 7:8], dense, format, False), expected[1:2, 7:8])


def test_half_hidden_states_are_computed_in_float():
    dense = dense_mlp("silu", False)
    hidden = torch.randn(1, 4, D).bfloat16()
    got = run_mlp(hidden, dense, "int8", False)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, run_mlp(hidden.float(), dense, "int8", False).bfloat16())
