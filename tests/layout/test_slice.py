"""A part of a packed weight: the values of the whole, bit for bit, in a packed weight like any other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_cpullm.formats import INT4, INT8
from torch_cpullm.ops import linear as ops
from torch_cpullm.reference.packed import decode
from torch_cpullm.testing.formats import FORMATS


def ranges(most, unit=1):
    """(first, stop) inside 0 to `most`, at multiples of `unit` or the end."""
    ends = st.integers(0, -(-most // unit)).map(lambda place: min(place * unit, most))
    return st.tuples(ends, ends).map(sorted).map(tuple).filter(lambda ends: ends[0] < ends[1])


@st.composite
def cases(draw):
    format = FORMATS[draw(st.sampled_from(sorted(FORMATS)))]
    columns, depth = draw(st.integers(1, 200)), draw(st.integers(1, 1100))
    weight = torch.randn(columns, depth, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    if draw(st.booleans()):  # scales of one row as far apart as f16 reaches, and farther
        weight *= torch.logspace(-5, 2, depth)
    rows = draw(st.lists(ranges(columns), min_size=1, max_size=3))
    return format, weight, rows, draw(ranges(depth, format.cut_unit))


def rows_of(x, rows):
    return torch.cat([x[first:stop] for first, stop in rows])


@given(cases())
def test_values_are_those_of_the_whole(case):
    format, weight, rows, (first, stop) = case
    whole = ops.pack(weight, torch.arange(len(weight)).float(), format)
    part = ops.slice_packed(whole, rows, (first, stop), bias=True)
    expected = rows_of(ops.unpack(whole), rows)[:, first:stop]
    assert torch.equal(ops.unpack(part), expected)
    assert torch.equal(decode(part).value_NK, expected)
    info = ops.packed_info(part)
    assert (info.out_features, info.in_features, info.format, info.has_bias) == (*expected.shape, format, True)
    nothing = ops.linear(torch.zeros(1, stop - first), part)
    assert torch.equal(nothing[0], rows_of(torch.arange(len(weight)).float(), rows))


@pytest.mark.parametrize("name", FORMATS)
def test_the_whole_as_a_part_has_its_bytes(name):
    whole = ops.pack(torch.randn(130, 700), torch.randn(130), FORMATS[name], torch.full((700,), 2.0))
    assert torch.equal(ops.slice_packed(whole, [(0, 130)], (0, 700), bias=True), whole)


@pytest.mark.parametrize("name", FORMATS)
def test_a_part_by_rows_is_what_packing_those_rows_gives(name):
    """Rows know nothing of each other, so the bytes are the same: padding included."""
    weight, multiplier = torch.randn(200, 300), torch.exp2(torch.randint(-3, 4, (300,)).float())
    rows = [(16, 50), (64, 128), (131, 200)]
    part = ops.slice_packed(ops.pack(weight, None, FORMATS[name], multiplier), rows, (0, 300), bias=True)
    assert torch.equal(part, ops.pack(rows_of(weight, rows), None, FORMATS[name], multiplier))


@pytest.mark.parametrize("name", FORMATS)
def test_parts_by_inputs_add_up(name):
    """Each with its share of the multiplier, the bias in one of them."""
    x, weight, bias = torch.randn(3, 768), torch.randn(70, 768), torch.randn(70)
    multiplier = torch.exp2(torch.randint(-3, 4, (768,)).float())
    whole = ops.pack(weight, bias, FORMATS[name], multiplier)
    parts = [ops.slice_packed(whole, [(0, 70)], ends, bias=ends[0] == 0) for ends in ((0, 256), (256, 768))]
    assert [ops.packed_info(part).has_bias for part in parts] == [True, False]
    got = ops.linear(x[:, :256], parts[0]) + ops.linear(x[:, 256:], parts[1])
    assert torch.allclose(got, ops.linear(x, whole), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bytes_for_any_thread_count(threads):
    whole = ops.pack(torch.randn(300, 600), None, INT4)
    expected = ops.slice_packed(whole, [(5, 290)], (256, 600), bias=True)
    torch.set_num_threads(threads)
    assert torch.equal(ops.slice_packed(whole, [(5, 290)], (256, 600), bias=True), expected)


@pytest.mark.parametrize(
    ("format", "rows", "inputs", "sentence"),
    [
        (INT8, [], (0, 64), r"rows: expected pairs"),
        (INT8, [(3, 3)], (0, 64), r"rows: expected ranges inside 0 to 70"),
        (INT8, [(0, 71)], (0, 64), r"rows: expected ranges inside 0 to 70"),
        (INT8, [(-1, 5)], (0, 64), r"rows: expected ranges inside 0 to 70"),
        (INT8, [(0, 70)], (64, 64), r"first, stop: expected a range inside 0 to 600"),
        (INT8, [(0, 70)], (0, 601), r"first, stop: expected a range inside 0 to 600"),
        (INT8, [(0, 70)], (2, 600), r"first, stop: expected multiples of 4"),
        (INT4, [(0, 70)], (128, 600), r"first, stop: expected multiples of 256, between which"),
        (INT4, [(0, 70)], (0, 128), r"first, stop: expected multiples of 256, between which"),
    ],
)
def test_what_cannot_be_cut_is_refused(format, rows, inputs, sentence):
    packed = ops.pack(torch.randn(70, 600), None, format)
    with pytest.raises(ValueError, match=sentence):
        ops.slice_packed(packed, rows, inputs, bias=True)


def test_foreign_bytes_are_refused():
    with pytest.raises(ValueError, match="packed"):
        ops.slice_packed(torch.zeros(4096, dtype=torch.uint8), [(0, 1)], (0, 1), bias=True)
