"""Norm, rope and gate against their definitions."""

import pytest
import torch

from torch_cpullm.ops import rowwise as ops
from torch_cpullm.reference import rowwise as reference
from torch_cpullm.testing.tolerances import EPS, assert_within

WIDTHS = [1, 3, 15, 16, 17, 31, 64, 100, 384]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(width, offset):
    x, weight = torch.randn(5, width) * 3, torch.randn(width)
    expected = reference.rms_norm(x, weight, 1e-6, offset)
    assert_within(ops.rms_norm(x, weight, 1e-6, offset), expected, (width / 16 + 8) * EPS * expected.abs() + 1e-30)


def test_rms_norm_uses_its_eps():
    x, weight = torch.full((1, 8), 1e-4), torch.ones(8)
    assert ops.rms_norm(x, weight, 1e-2)[0, 0] < 0.01 < ops.rms_norm(x, weight, 0.0)[0, 0]
    assert torch.equal(ops.rms_norm(torch.zeros(1, 8), weight, 1e-6), torch.zeros(1, 8))


def test_rms_norm_keeps_a_bad_row_alone():
    x, weight = torch.randn(4, 40), torch.randn(40)
    clean = ops.rms_norm(x, weight, 1e-6)
    x[2, 5] = float("nan")
    got = ops.rms_norm(x, weight, 1e-6)
    assert torch.equal(got[[0, 1, 3]], clean[[0, 1, 3]])
    assert got[2].isnan().all()


@pytest.mark.parametrize(("channels", "rotary"), [(16, 16), (64, 64), (80, 80), (64, 32), (32, 6), (128, 0)])
@pytest.mark.parametrize("batched", [True, False])
def test_rope(channels, rotary, batched):
    x = torch.randn(2, 5, 3, channels)
    angles = torch.randn(2 if batched else 1, 5, rotary)
    cos, sin = angles.cos(), angles.sin()
    expected = reference.rope(x, cos, sin)
    assert_within(ops.rope(x, cos, sin), expected, 4 * EPS * float(x.abs().max()))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf"])
def test_gated(width, activation):
    gate, up = torch.randn(3, width) * 5, torch.randn(3, width)
    expected = reference.gated(gate, up, activation)
    # sigmoid and exp within 3 ulp of one: a few eps of |gate * up|.
    assert_within(ops.gated(gate, up, activation), expected, 8 * EPS * (gate * up).abs() + 1e-37)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu_erf"])
def test_gated_far_out(activation):
    gate = torch.tensor([-1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e30])
    got = ops.gated(gate, torch.ones(7), activation)
    assert torch.equal(got, torch.tensor([0.0, 0.0, 0.0, 0.0, 90.0, 200.0, 1e30]))
    assert ops.gated(torch.tensor([float("nan")]), torch.ones(1), activation).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_dtypes_are_computed_in_float(dtype):
    x, weight = torch.randn(4, 50).to(dtype), torch.randn(50).to(dtype)
    assert torch.equal(ops.rms_norm(x, weight, 1e-6), ops.rms_norm(x.float(), weight.float(), 1e-6).to(dtype))
    assert torch.equal(ops.gated(x, x, "silu"), ops.gated(x.float(), x.float(), "silu").to(dtype))
