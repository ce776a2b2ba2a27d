"""Norms, rope and gate against their definitions."""

import pytest
import torch

from torch_cpullm.ops import rowwise as ops
from torch_cpullm.reference import rowwise as reference
from torch_cpullm.testing.guard import guarded
from torch_cpullm.testing.tolerances import EPS, assert_within

ACTIVATIONS = ["silu", "gelu_tanh", "gelu_erf", "relu"]
WIDTHS = [1, 3, 15, 16, 17, 31, 64, 100, 384]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(width, offset):
    x, weight = torch.randn(5, width) * 3, torch.randn(width)
    expected = reference.rms_norm(x, weight, 1e-6, offset)
    assert_within(ops.rms_norm(x, weight, 1e-6, offset), expected, (width / 16 + 8) * EPS * expected.abs() + 1e-30)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm(width, biased):
    x, weight, bias = torch.randn(5, width) * 3 + 2, torch.randn(width), torch.randn(width) if biased else None
    expected = reference.layer_norm(x, weight, bias, 1e-5)
    assert_within(ops.layer_norm(x, weight, bias, 1e-5), expected, layer_norm_bound(x, weight, bias, 1e-5))


def layer_norm_bound(x, weight, bias, eps):
    """The mean's rounding counts against the row's largest value, and the rest against the result."""
    width = x.shape[-1]
    wide = x.double()
    deviation = (wide - wide.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True).add(eps).sqrt()
    steps = (width / 16 + 8) * EPS
    shift = 0.0 if bias is None else bias.abs()
    scaled = (wide - wide.mean(-1, keepdim=True)).abs() / deviation + wide.abs().amax(-1, keepdim=True) / deviation
    return steps * (scaled * weight.abs() + shift) + 1e-30


@pytest.mark.parametrize("width", [8, 100])
def test_layer_norm_is_not_hurt_by_a_large_mean(width):
    """Squares of what is left of a mean of 1000, not squares that cancel."""
    x, weight = torch.randn(3, width) + 1000.0, torch.ones(width)
    expected = reference.layer_norm(x, weight)
    assert (ops.layer_norm(x, weight) - expected).abs().max() < 1e-3


HARD = {
    "lognormal": lambda x: x.exp() * x.sign(),
    "outlier": lambda x: x.index_fill(-1, torch.tensor([3]), 1e6),
    "large": lambda x: x * 1e17,  # squares up to 1e36
    "small": lambda x: x * 1e-20,  # squares vanish beside eps
    "denormal": lambda x: x * 1e-40,
    "constant": lambda x: torch.full_like(x, -0.7),
    "one row of zeros": lambda x: x.index_fill(0, torch.tensor([1]), 0.0),
}


@pytest.mark.parametrize("inputs", HARD)
def test_rms_norm_of_hard_numbers(inputs):
    x, weight = HARD[inputs](torch.randn(4, 200)), torch.randn(200)
    expected = reference.rms_norm(x, weight, 1e-6)
    assert_within(ops.rms_norm(x, weight, 1e-6), expected, (200 / 16 + 8) * EPS * expected.abs() + 1e-44)


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


@pytest.mark.parametrize("inputs", HARD)
def test_layer_norm_of_hard_numbers(inputs):
    x, weight, bias = HARD[inputs](torch.randn(4, 200)), torch.randn(200), torch.randn(200)
    bound = layer_norm_bound(x, weight, bias, 1e-5)
    assert_within(ops.layer_norm(x, weight, bias), reference.layer_norm(x, weight, bias), bound)


@pytest.mark.parametrize(("channels", "rotary"), [(16, 16), (64, 64), (80, 80), (64, 32), (32, 6), (128, 0)])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("pairs", [False, True])
def test_rope(channels, rotary, batched, pairs):
    x = torch.randn(2, 5, 3, channels)
    angles = torch.randn(2 if batched else 1, 5, rotary)
    cos, sin = angles.cos(), angles.sin()
    expected = reference.rope(x, cos, sin, pairs=pairs)
    half = rotary // 2
    size = x.abs()
    if rotary:  # |x cos| + |x' sin| for both halves: two roundings of each
        other = torch.cat((size[..., half:rotary], size[..., :half]), -1)
        if pairs:
            other = size[..., :rotary].unflatten(-1, (half, 2)).flip(-1).flatten(-2)
        size[..., :rotary] = size[..., :rotary] * cos.abs().unsqueeze(2) + other * sin.abs().unsqueeze(2)
    got = ops.rope(x, cos, sin, pairs=pairs)
    assert_within(got, expected, 2 * EPS * size)
    assert torch.equal(got[..., rotary:], x[..., rotary:])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated(width, activation):
    gate, up = torch.randn(3, width) * 5, torch.randn(3, width)
    expected = reference.gated(gate, up, activation)
    # sigmoid and exp within 3 ulp of one: a few eps of |gate * up|.
    assert_within(ops.gated(gate, up, activation), expected, 8 * EPS * (gate * up).abs() + 1e-37)
    alone = reference.gated(gate, None, activation)
    assert_within(ops.gated(gate, None, activation), alone, 8 * EPS * gate.abs() + 1e-37)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_far_out(activation):
    gate = torch.tensor([-1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e30])
    got = ops.gated(gate, torch.ones(7), activation)
    assert torch.equal(got, torch.tensor([0.0, 0.0, 0.0, 0.0, 90.0, 200.0, 1e30]))
    assert ops.gated(torch.tensor([float("nan")]), torch.ones(1), activation).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_dtypes_are_computed_in_float(dtype):
    x, weight = torch.randn(4, 50).to(dtype), torch.randn(50).to(dtype)
    assert torch.equal(ops.rms_norm(x, weight, 1e-6), ops.rms_norm(x.float(), weight.float(), 1e-6).to(dtype))
    wide = ops.layer_norm(x.float(), weight.float(), weight.float())
    assert torch.equal(ops.layer_norm(x, weight, weight), wide.to(dtype))
    assert torch.equal(ops.gated(x, x, "silu"), ops.gated(x.float(), x.float(), "silu").to(dtype))


def every_op(x_BTHC, weight_C, cos_BTR, sin_BTR):
    yield ops.rms_norm(x_BTHC, weight_C, 1e-6, 1.0)
    yield ops.layer_norm(x_BTHC, weight_C, None, 1e-6)
    yield ops.layer_norm(x_BTHC, weight_C, weight_C, 1e-6)
    yield ops.rope(x_BTHC, cos_BTR, sin_BTR)
    yield ops.rope(x_BTHC, cos_BTR, sin_BTR, pairs=True)
    for activation in ACTIVATIONS:
        yield ops.gated(x_BTHC, x_BTHC.flip(0), activation)
        yield ops.gated(x_BTHC, None, activation)


def operands(batch=3, tokens=7, heads=2, channels=50):
    angles = torch.randn(batch, tokens, 34)
    return torch.randn(batch, tokens, heads, channels), torch.randn(channels), angles.cos(), angles.sin()


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_rows_bits_depend_on_nothing_else():
    x, weight, cos, sin = operands()
    torch.set_num_threads(1)
    expected = list(every_op(x, weight, cos, sin))
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        assert same(every_op(x, weight, cos, sin), expected)
        for t in (0, 3, 6):
            alone = every_op(x[:, t : t + 1], weight, cos[:, t : t + 1], sin[:, t : t + 1])
            assert same(alone, [out[:, t : t + 1] for out in expected])


def test_strided_inputs_are_as_good():
    x, weight, cos, sin = operands()
    expected = list(every_op(x, weight, cos, sin))
    shuffled = x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
    spread = torch.stack((weight, weight), 1)[:, 0]
    angles = [table.transpose(0, 1).contiguous().transpose(0, 1) for table in (cos, sin)]
    assert not shuffled.is_contiguous()
    assert same(every_op(shuffled, spread, *angles), expected)


def test_nothing_is_read_behind_a_tensor():
    tensors = operands()
    assert same(every_op(*map(guarded, tensors)), every_op(*tensors))


def test_no_rows():
    for batch, tokens, heads in ((0, 7, 2), (3, 0, 2), (3, 7, 0)):
        for out in every_op(*operands(batch, tokens, heads)):
            assert out.shape == (batch, tokens, heads, 50)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_stays_alone(bad):
    x, weight, cos, sin = operands()
    clean = list(every_op(x, weight, cos, sin))
    x[1, 4, 1, 3] = bad
    for got, before in zip(every_op(x, weight, cos, sin), clean, strict=True):
        assert not got[1, 4, 1].isfinite().all()
        keep = torch.ones(3, 7, 2, dtype=torch.bool)
        keep[1, 4, 1] = False  # gated also reads x.flip(0), whose row 1 is row 1
        assert torch.equal(got[keep], before[keep])
