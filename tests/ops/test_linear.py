"""linear against its definition: every tail, hard numbers, and the same bits however it is called."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_cpullm.formats import INT8, WeightFormat
from torch_cpullm.ops import linear as ops
from torch_cpullm.reference import linear as reference
from torch_cpullm.reference.packed import decode
from torch_cpullm.testing.formats import EACH_KERNEL, FORMATS
from torch_cpullm.testing.guard import guarded
from torch_cpullm.testing.tolerances import EPS, assert_within, dot_bound


def bound_of(x_MK, weight, bias_N):
    """How far float32 sums may be off (testing/tolerances.py); integer sums are exact inside a group."""
    x_MK = x_MK if weight.multiplier_K is None else x_MK * weight.multiplier_K
    if weight.format.activation == "int8":
        plain = reference.DenseWeight(
            weight.format, weight.steps_NK.abs(), weight.scale_NG.abs(), weight.column_scale_N.abs()
        )
        roundings = -(-x_MK.shape[1] // (weight.format.group or 256)) + -(-x_MK.shape[1] // 256)
        bound = (2 * roundings + 6) * EPS * reference.linear(x_MK.abs(), plain)
    else:
        rounded = x_MK.bfloat16().float() if weight.format.activation == "bf16" else x_MK
        scaled = weight.scaled_NK.bfloat16().float() if weight.format.activation == "bf16" else weight.scaled_NK
        bound = dot_bound(rounded, scaled) * (1 + 4 * EPS) * weight.column_scale_N.abs()
        bound += 4 * EPS * (rounded.abs() @ scaled.abs().T) * weight.column_scale_N.abs()
    if bias_N is not None:
        bound = bound + 2 * EPS * bias_N.abs()
    return bound.nan_to_num(float("inf")) + 1e-37


def check(x_MK, weight_NK, bias_N, name, multiplier_K=None):
    packed = ops.pack(weight_NK, bias_N, FORMATS[name], multiplier_K)
    got = ops.linear(x_MK, packed)
    weight = decode(packed)
    assert_within(got, reference.linear(x_MK, weight, bias_N), bound_of(x_MK, weight, bias_N))
    return got


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    rows=st.one_of(st.integers(1, 30), st.sampled_from([31, 32, 33, 47, 48, 49, 64, 127, 128, 129, 145])),
    columns=st.one_of(st.integers(1, 140), st.sampled_from([191, 192, 193, 256, 320])),
    depth=st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 255, 256, 257, 288, 511, 512, 513, 770])),
    has_bias=st.booleans(),
    has_multiplier=st.booleans(),
    name=st.sampled_from(sorted(FORMATS)),
)
def test_every_tail(rows, columns, depth, has_bias, has_multiplier, name):
    torch.manual_seed(rows * 1000 + columns)
    bias = torch.randn(columns) if has_bias else None
    multiplier = torch.exp2(torch.randint(-3, 4, (depth,)).float()) if has_multiplier else None
    check(torch.randn(rows, depth), torch.randn(columns, depth), bias, name, multiplier)


INPUTS = {
    "uniform": lambda m, k: torch.rand(m, k) - 0.5,
    "lognormal": lambda m, k: torch.randn(m, k).exp() * torch.randn(m, k).sign(),
    "outlier": lambda m, k: torch.randn(m, k).index_fill(1, torch.tensor([3]), 1e4),
    "1e4 beside 1e-4": lambda m, k: torch.where(torch.rand(m, k) < 0.5, 1e4, 1e-4) * torch.randn(m, k),
    "tiny": lambda m, k: torch.randn(m, k) * 1e-30,
    "denormal": lambda m, k: torch.randn(m, k) * 1e-40,
    "one row of zeros": lambda m, k: torch.randn(m, k).index_fill(0, torch.tensor([2]), 0.0),
    "one group of zeros": lambda m, k: torch.randn(m, k).index_fill(1, torch.arange(256, min(k, 512)), 0.0),
    "zero": lambda m, k: torch.zeros(m, k),
    "constant": lambda m, k: torch.full((m, k), -2.5),
    "saturating": lambda m, k: torch.randint(0, 2, (m, k)) * 254.0 - 127.0,
}


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("name", FORMATS)
def test_hard_numbers(inputs, name):
    check(INPUTS[inputs](7, 600), torch.randn(130, 600), None, name)


@pytest.mark.parametrize("weights", [name for name in INPUTS if not name.startswith("one ")])
@pytest.mark.parametrize("name", FORMATS)
def test_hard_weights(weights, name):
    check(torch.randn(7, 600), INPUTS[weights](70, 600), torch.randn(70), name)


def test_integers_are_exact():
    """Integral operands with 127 in every group have the scale 1: then nothing is rounded, and the sum is the sum."""
    for rows, columns, depth in ((1, 64, 256), (6, 65, 257), (7, 63, 1000), (13, 130, 3), (121, 5, 520)):
        x, weight = (torch.randint(-127, 128, (n, depth)).float() for n in (rows, columns))
        x[:, ::256], weight[:, 0] = 127.0, -127.0
        got = ops.linear(x, ops.pack(weight, None, INT8))  # below 1000 * 127^2 < 2^24
        assert torch.equal(got.double(), x.double() @ weight.double().T), (rows, columns, depth)


@pytest.mark.parametrize("name", [name for name in FORMATS if "int4" in name and "a16" not in name])
def test_int4_integers_are_exact(name):
    """Codes on a grid of step 1, whole activations: the nibbles, their order and their zero points are all right."""
    format = FORMATS[name]
    for rows, columns, depth in ((1, 64, 256), (6, 65, 257), (13, 63, 300), (17, 130, 3), (121, 5, 520)):
        groups = -(-depth // format.group)
        x = torch.randint(-127, 128, (rows, depth)).float()
        x[:, ::256] = 127.0
        zero = (
            torch.randint(0, 16, (columns, groups)).float() if format.asymmetric else torch.full((columns, groups), 8.0)
        )
        weight = torch.randint(0, 16, (columns, depth)) - zero.repeat_interleave(format.group, 1)[:, :depth]
        scales = ops.Scales(torch.ones(columns, groups), zero if format.asymmetric else None)
        got = ops.linear(x, ops.pack(weight, None, format, None, scales))
        assert torch.equal(got.double(), x.double() @ weight.double().T), (rows, columns, depth)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 4, 5, 12, 13, 17, 33, 64])
def test_extremes_of_two_levels_are_exact(group, rows):
    """|code * multiplier| = 120 under activations of 127: 256 * 120 * 127 is the largest sum there is."""
    depth, columns = 3 * 256 - group, 70
    code = torch.full((columns, depth), -8.0)
    code[1::4], code[2::4] = 7.0, torch.randint(-8, 8, (depth,)).float()
    multiplier = torch.full((columns, depth // group), 15.0)
    multiplier[::3] = -15.0
    multiplier[5::7, ::2] = 1.0
    scale = multiplier / 64
    weight = code * scale.repeat_interleave(group, 1)
    packed = ops.pack(weight, None, WeightFormat("int4", "int8", group), None, ops.Scales(scale))
    assert torch.equal(ops.unpack(packed), weight)
    x = torch.full((rows, depth), 127.0)
    x[1::2] = -127.0
    x[2::3, 1::2] = torch.randint(-127, 128, (depth // 2,)).float()
    assert torch.equal(ops.linear(x, packed).double(), x.double() @ weight.double().T)


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.two_levels])
def test_any_number_of_rows_has_the_bits_of_one(name):
    packed = ops.pack(torch.randn(130, 608) * torch.randn(130, 608).exp(), None, FORMATS[name])
    x = torch.randn(40, 608)
    alone = torch.cat([ops.linear(row[None], packed) for row in x])
    for rows in range(1, 41):
        assert torch.equal(ops.linear(x[:rows], packed), alone[:rows])


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_read_behind_a_tensor(name):
    """Inputs that end at a closed page; they begin where they may, at a multiple of their element's size."""
    for rows, columns, depth in ((1, 1, 1), (1, 70, 259), (7, 64, 256), (18, 65, 255), (122, 3, 515)):
        packed = ops.pack(torch.randn(columns, depth), torch.randn(columns), FORMATS[name])
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = torch.randn(rows, depth).to(dtype)
            expected = ops.linear(x, packed)
            assert torch.equal(ops.linear(guarded(x), guarded(packed)), expected)
            shifted = guarded(torch.cat((x.flatten(), x[0])))[: x.numel()].view_as(x)
            assert torch.equal(ops.linear(shifted, packed), expected)
        assert torch.equal(ops.unpack(guarded(packed)), ops.unpack(packed))


def test_extreme_codes_do_not_overflow():
    x, weight = torch.full((3, 4096), 127.0), torch.full((70, 4096), -127.0)
    expected = torch.full((3, 70), -127.0 * 127.0 * 4096)  # 127^2 * 2^12 is a float32
    assert torch.equal(ops.linear(x, ops.pack(weight, None, INT8)), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", FORMATS)
def test_a_bad_row_stays_alone(bad, name):
    packed = ops.pack(torch.randn(90, 300), None, FORMATS[name])
    for rows in (9, 40):
        x = torch.randn(rows, 300)
        clean = ops.linear(x, packed)
        x[4, 17] = bad
        got = ops.linear(x, packed)
        others = [row for row in range(rows) if row != 4]
        assert torch.equal(got[others], clean[others])
        assert not got[4].isfinite().any()


@pytest.mark.parametrize("name", FORMATS)
def test_a_rows_bits_depend_on_nothing_else(name):
    packed = ops.pack(torch.randn(200, 700), torch.randn(200), FORMATS[name])
    x = torch.randn(300, 700)
    expected = ops.linear(x, packed)
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        assert torch.equal(ops.linear(x, packed), expected)
        for rows in (1, 2, 5, 6, 7, 11, 12, 13, 16, 17, 24, 25, 31, 32, 33, 47, 49, 127, 128, 129):
            assert torch.equal(ops.linear(x[11 : 11 + rows], packed), expected[11 : 11 + rows])


def test_torchs_own_kernels_in_the_same_threads_are_undisturbed():
    """Tile registers and their shapes are the thread's: oneDNN's products between ours keep their bits, ours too."""
    x, weight = torch.randn(64, 256).bfloat16(), torch.randn(96, 256).bfloat16()
    packed = [ops.pack(weight, None, FORMATS[name]) for name in EACH_KERNEL]
    expected = torch.nn.functional.linear(x, weight)
    ours = [ops.linear(x, each) for each in packed]
    for _ in range(3):
        for each, alone in zip(packed, ours, strict=True):
            assert torch.equal(torch.nn.functional.linear(x, weight), expected)
            assert torch.equal(ops.linear(x, each), alone)


@pytest.mark.parametrize("name", EACH_KERNEL)
def test_one_row_has_the_bits_of_four_thousand(name):
    packed = ops.pack(torch.randn(70, 300), None, FORMATS[name])
    x = torch.randn(4096, 300)
    whole = ops.linear(x, packed)
    for row in (0, 119, 128, 256, 4095):
        assert torch.equal(ops.linear(x[row], packed), whole[row])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", EACH_KERNEL)
def test_deep_products_are_cut_without_a_trace(name, threads):
    """Many rows of a deep weight are multiplied run by run of K where that keeps them in cache."""
    torch.set_num_threads(threads)
    weight, x = torch.randn(700, 4700), torch.randn(260, 4700)
    packed = ops.pack(weight, torch.randn(700), FORMATS[name])
    whole = ops.linear(x, packed)
    for row in (0, 255, 256, 259):
        assert torch.equal(ops.linear(x[row], packed), whole[row])
    for rows in (129, 200, 256, 257):
        assert torch.equal(ops.linear(x[:rows], packed), whole[:rows])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_shapes_of_the_input(dtype, name):
    packed = ops.pack(torch.randn(40, 97), None, FORMATS[name])
    x = torch.randn(2, 3, 97).to(dtype)
    got = ops.linear(x, packed)
    assert got.dtype == dtype
    assert got.shape == (2, 3, 40)
    assert torch.equal(got, ops.linear(x.float(), packed).to(dtype))
    assert torch.equal(ops.linear(x[0, 0], packed), got[0, 0])


def test_strided_input_is_as_good():
    packed = ops.pack(torch.randn(40, 96), None, INT8)
    x = torch.randn(96, 10)
    assert torch.equal(ops.linear(x.T, packed), ops.linear(x.T.contiguous(), packed))
    wide = torch.randn(10, 200)
    assert torch.equal(ops.linear(wide[:, 7:103], packed), ops.linear(wide[:, 7:103].clone(), packed))

    rows = torch.randn(1, 96)
    assert torch.equal(ops.linear(rows.expand(5, 96), packed), ops.linear(rows, packed).expand(5, 40))


@pytest.mark.parametrize("name", EACH_KERNEL)
def test_no_rows(name):
    packed = ops.pack(torch.randn(40, 96), torch.randn(40), FORMATS[name])
    assert ops.linear(torch.empty(0, 96), packed).shape == (0, 40)
    assert ops.linear(torch.empty(3, 0, 96), packed).shape == (3, 0, 40)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embed_gives_the_rows_of_the_weight(dtype, name):
    packed = ops.pack(torch.randn(130, 70), None, FORMATS[name])
    ids = torch.tensor([[0, 129, 64], [63, 5, 5]])
    expected = ops.unpack(packed)[ids].to(dtype)
    assert torch.equal(ops.embed(ids, packed, dtype), expected)
    assert torch.equal(ops.embed(ids.int(), guarded(packed), dtype), expected)
    assert ops.embed(ids[:0], packed, dtype).shape == (0, 3, 70)
