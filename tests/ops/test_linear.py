"""linear against its definition: every tail, hard numbers, and the same bits however it is called."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_cpullm.ops import linear as ops
from torch_cpullm.reference import linear as reference
from torch_cpullm.testing.guard import guarded
from torch_cpullm.testing.tolerances import EPS, assert_within, dot_bound

FORMATS = ["f32", "bf16", "int8"]


def check(x_MK, weight_NK, bias_N, format):
    got = ops.linear(x_MK, ops.pack(weight_NK, bias_N, format))
    expected = reference.linear(x_MK, weight_NK, bias_N, format)
    if format == "int8":
        # Integer sums are exact: what is left are one rounding per group of 256, the scale and the bias.
        magnitude = reference.linear(x_MK.abs(), weight_NK.abs(), None, format)
        groups = -(-x_MK.shape[1] // 256)
        bound = (2 * groups + 4) * EPS * magnitude
    else:
        rounded = x_MK.bfloat16().float() if format == "bf16" else x_MK
        bound = dot_bound(rounded, reference.round_weight(weight_NK, format))
    if bias_N is not None:
        bound = bound + 2 * EPS * bias_N.abs()
    assert_within(got, expected, bound.nan_to_num(float("inf")) + 1e-37)
    return got


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 14),
    columns=st.one_of(st.integers(1, 140), st.sampled_from([191, 192, 193, 256, 320])),
    depth=st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 255, 256, 257, 511, 512, 513, 770])),
    has_bias=st.booleans(),
    format=st.sampled_from(FORMATS),
)
def test_every_tail(rows, columns, depth, has_bias, format):
    torch.manual_seed(rows * 1000 + columns)
    bias = torch.randn(columns) if has_bias else None
    check(torch.randn(rows, depth), torch.randn(columns, depth), bias, format)


INPUTS = {
    "uniform": lambda m, k: torch.rand(m, k) - 0.5,
    "lognormal": lambda m, k: torch.randn(m, k).exp() * torch.randn(m, k).sign(),
    "outlier": lambda m, k: torch.randn(m, k).index_fill(1, torch.tensor([3]), 1e4),
    "tiny": lambda m, k: torch.randn(m, k) * 1e-30,
    "denormal": lambda m, k: torch.randn(m, k) * 1e-40,
    "one row of zeros": lambda m, k: torch.randn(m, k).index_fill(0, torch.tensor([2]), 0.0),
    "one group of zeros": lambda m, k: torch.randn(m, k).index_fill(1, torch.arange(256, min(k, 512)), 0.0),
    "zero": lambda m, k: torch.zeros(m, k),
    "constant": lambda m, k: torch.full((m, k), -2.5),
    "saturating": lambda m, k: torch.randint(0, 2, (m, k)) * 254.0 - 127.0,
}


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("format", FORMATS)
def test_hard_numbers(inputs, format):
    check(INPUTS[inputs](7, 600), torch.randn(130, 600), None, format)


@pytest.mark.parametrize("weights", set(INPUTS) - {"one row of zeros", "one group of zeros"})
@pytest.mark.parametrize("format", FORMATS)
def test_hard_weights(weights, format):
    check(torch.randn(7, 600), INPUTS[weights](70, 600), torch.randn(70), format)


def test_integers_are_exact():
    """Integral operands with 127 in every group have the scale 1: then nothing is rounded, and the sum is the sum."""
    for rows, columns, depth in ((1, 64, 256), (6, 65, 257), (7, 63, 1000), (13, 130, 3), (121, 5, 520)):
        x, weight = (torch.randint(-127, 128, (n, depth)).float() for n in (rows, columns))
        x[:, ::256], weight[:, 0] = 127.0, -127.0
        got = ops.linear(x, ops.pack(weight, None, "int8"))  # below 1000 * 127^2 < 2^24
        assert torch.equal(got.double(), x.double() @ weight.double().T), (rows, columns, depth)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_read_behind_a_tensor(format):
    """Inputs that end at a closed page; they begin where they may, at a multiple of four bytes."""
    for rows, columns, depth in ((1, 1, 1), (1, 70, 259), (7, 64, 256), (13, 65, 255), (122, 3, 515)):
        x, packed = torch.randn(rows, depth), ops.pack(torch.randn(columns, depth), torch.randn(columns), format)
        expected = ops.linear(x, packed)
        assert torch.equal(ops.linear(guarded(x), guarded(packed)), expected)
        assert torch.equal(
            ops.linear(guarded(torch.cat((x.flatten(), x[0])))[: x.numel()].view_as(x), packed), expected
        )
        assert torch.equal(ops.unpack(guarded(packed)), ops.unpack(packed))


def test_extreme_codes_do_not_overflow():
    x, weight = torch.full((3, 4096), 127.0), torch.full((70, 4096), -127.0)
    expected = torch.full((3, 70), -127.0 * 127.0 * 4096)  # 127^2 * 2^12 is a float32
    assert torch.equal(ops.linear(x, ops.pack(weight, None, "int8")), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("format", FORMATS)
def test_a_bad_row_stays_alone(bad, format):
    packed = ops.pack(torch.randn(90, 300), None, format)
    x = torch.randn(9, 300)
    clean = ops.linear(x, packed)
    x[4, 17] = bad
    got = ops.linear(x, packed)
    others = [row for row in range(9) if row != 4]
    assert torch.equal(got[others], clean[others])
    assert not got[4].isfinite().any()


@pytest.mark.parametrize("format", FORMATS)
def test_a_rows_bits_depend_on_nothing_else(format):
    packed = ops.pack(torch.randn(200, 700), torch.randn(200), format)
    x = torch.randn(300, 700)
    expected = ops.linear(x, packed)
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        assert torch.equal(ops.linear(x, packed), expected)
        for rows in (1, 2, 5, 6, 7, 119, 120, 121):
            assert torch.equal(ops.linear(x[11 : 11 + rows], packed), expected[11 : 11 + rows])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_shapes_of_the_input(dtype, format):
    packed = ops.pack(torch.randn(40, 96), None, format)
    x = torch.randn(2, 3, 96).to(dtype)
    got = ops.linear(x, packed)
    assert got.dtype == dtype
    assert got.shape == (2, 3, 40)
    assert torch.equal(got, ops.linear(x.float(), packed).to(dtype))
    assert torch.equal(ops.linear(x[0, 0], packed), got[0, 0])


def test_strided_input_is_as_good():
    packed = ops.pack(torch.randn(40, 96), None, "int8")
    x = torch.randn(96, 10)
    assert torch.equal(ops.linear(x.T, packed), ops.linear(x.T.contiguous(), packed))
    wide = torch.randn(10, 200)
    assert torch.equal(ops.linear(wide[:, 7:103], packed), ops.linear(wide[:, 7:103].clone(), packed))

    rows = torch.randn(1, 96)
    assert torch.equal(ops.linear(rows.expand(5, 96), packed), ops.linear(rows, packed).expand(5, 40))


@pytest.mark.parametrize("format", FORMATS)
def test_no_rows(format):
    packed = ops.pack(torch.randn(40, 96), torch.randn(40), format)
    assert ops.linear(torch.empty(0, 96), packed).shape == (0, 40)
    assert ops.linear(torch.empty(3, 0, 96), packed).shape == (3, 0, 40)
