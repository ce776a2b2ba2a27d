"""The MLP block with many rows: a task makes 256 columns of the rows that `down` reads (csrc/drivers/gated.h).

It does so from 17 rows on where each thread has 8 tasks, one for 256 columns and 256 (AMX) or 120 rows; with more
threads the same call goes the way of few rows. Sizes here are chosen by that: with 600 rows, 700 columns are
enough for one thread, 1537 for two and 2001 for three, none for four.
"""

import pytest
import torch

from torch_cpullm.ops.block import MlpWeights, NormNumbers, mlp_block
from torch_cpullm.ops.linear import linear, pack, packed_info
from torch_cpullm.ops.rowwise import gated, rms_norm
from torch_cpullm.testing.formats import EACH_KERNEL, FORMATS
from torch_cpullm.testing.guard import guarded

ROWS = 600
NUMBERS = NormNumbers(1e-6, 0.0)


def random_mlp(model, ffn, formats, *, fused=False, bias=False, multiplier=False, gate=True):
    """Weights of gate, up and down in the three `formats`; where gate and up are fused they share the first.

    Without a gate there are up and down, in the first and in the last.
    """

    def draw(outputs, inputs):
        bias_N = torch.randn(outputs) if bias else None
        return torch.randn(outputs, inputs) / 8, bias_N, torch.rand(inputs) + 0.5 if multiplier else None

    *formats_of_halves, format_of_down = (FORMATS[name] for name in formats)
    weight, bias_N, multiplier_K = draw((1 + gate) * ffn, model)
    halves = [slice(None)] if fused or not gate else [slice(ffn), slice(ffn, None)]
    gate_up = [
        pack(weight[half], bias_N[half] if bias else None, format, multiplier_K)
        for half, format in zip(halves, formats_of_halves, strict=False)
    ]
    weight, bias_N, multiplier_K = draw(model, ffn)
    return MlpWeights(gate_up, pack(weight, bias_N, format_of_down, multiplier_K), torch.rand(model) + 0.5, None)


def by_parts(hidden, weights, activation):
    """The block as its definition reads, each step an op of its own."""
    x = rms_norm(hidden, weights.input_norm_D, NUMBERS.eps)
    inner = torch.cat([linear(x, weight) for weight in weights.gate_up], -1)
    if inner.shape[-1] == packed_info(weights.down).in_features:
        return hidden + linear(gated(inner, None, activation), weights.down)
    gate, up = inner.chunk(2, -1)
    return hidden + linear(gated(gate.contiguous(), up.contiguous(), activation), weights.down)


@pytest.mark.parametrize("format", EACH_KERNEL)
@pytest.mark.parametrize("ffn", [700, 1537, 2001, 2048])
def test_is_its_parts_bit_for_bit(format, ffn):
    """Columns that are no whole block, panel or vector, at every number of threads."""
    weights, hidden = random_mlp(48, ffn, [format] * 3), torch.randn(1, ROWS, 48)
    expected = by_parts(hidden, weights, "silu")
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        assert torch.equal(mlp_block(hidden, weights, "silu", NUMBERS), expected)


@pytest.mark.parametrize("format", EACH_KERNEL)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf", "relu"])
def test_nothing_is_gated(format, activation):
    weights, hidden = random_mlp(48, 2001, [format] * 3, gate=False, bias=True), torch.randn(1, ROWS, 48)
    expected = by_parts(hidden, weights, activation)
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        assert torch.equal(mlp_block(hidden, weights, activation, NUMBERS), expected)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("down", ["f32", "bf16", "int8", "int4 g32", "int8 a16"])
def test_down_of_another_kind(activation, fused, down):
    """Biases, multipliers, and one fused weight whose second half begins inside a panel."""
    for format in ("int8", "bf16"):
        weights = random_mlp(40, 705, [format, format, down], fused=fused, bias=True, multiplier=True)
        hidden = torch.randn(2, ROWS // 2, 40)
        torch.set_num_threads(1)
        assert torch.equal(mlp_block(hidden, weights, activation, NUMBERS), by_parts(hidden, weights, activation))


@pytest.mark.parametrize(("gate", "up"), [("bf16", "int8 a16"), ("int8 g64", "int4 g64")])
def test_gate_and_up_of_two_formats(gate, up):
    """They may differ in all but the rows they read; here one is cut along K where the other is not."""
    weights, hidden = random_mlp(2100, 700, [gate, up, "int8"]), torch.randn(1, ROWS, 2100)
    torch.set_num_threads(1)
    assert torch.equal(mlp_block(hidden, weights, "silu", NUMBERS), by_parts(hidden, weights, "silu"))


@pytest.mark.parametrize("format", ["int8", "bf16"])
def test_rows_around_the_borders_of_tasks(format):
    weights, hidden = random_mlp(33, 2050, [format] * 3), torch.randn(1, 2060, 33)
    torch.set_num_threads(1)
    whole = mlp_block(hidden, weights, "silu", NUMBERS)
    for rows in (1, 16, 17, 18, 119, 120, 121, 240, 255, 256, 257, 272, 511, 513, 2047, 2048, 2049):
        assert torch.equal(mlp_block(hidden[:, -rows:], weights, "silu", NUMBERS), whole[:, -rows:])


def test_nothing_is_read_outside_its_operands():
    weights, hidden = random_mlp(48, 2001, ["int8"] * 3, bias=True), torch.randn(1, 300, 48)
    torch.set_num_threads(1)
    closed = MlpWeights(
        [guarded(x) for x in weights.gate_up], guarded(weights.down), guarded(weights.input_norm_D), None
    )
    got = mlp_block(guarded(hidden), closed, "silu", NUMBERS)
    assert torch.equal(got, mlp_block(hidden, weights, "silu", NUMBERS))


@pytest.mark.parametrize("format", EACH_KERNEL)
def test_a_bad_row_stays_alone(format):
    weights, hidden = random_mlp(48, 2001, [format] * 3), torch.randn(1, 300, 48)
    torch.set_num_threads(1)
    clean = mlp_block(hidden, weights, "silu", NUMBERS)
    hidden[0, 270, 5] = float("nan")
    got = mlp_block(hidden, weights, "silu", NUMBERS)
    assert got[0, 270].isnan().any()
    got[0, 270] = clean[0, 270]
    assert torch.equal(got, clean)
