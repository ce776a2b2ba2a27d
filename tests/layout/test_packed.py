"""The packed layout: what goes in comes out, and foreign bytes are refused by name."""

import struct

import pytest
import torch

from torch_cpullm.formats import BF16, F32, INT4, INT8, WeightFormat
from torch_cpullm.ops import linear as ops
from torch_cpullm.reference import linear as reference
from torch_cpullm.reference.packed import decode
from torch_cpullm.testing.formats import FORMATS
from torch_cpullm.testing.guard import guarded

SHAPES = [(1, 1), (63, 255), (64, 256), (65, 257), (128, 512), (100, 70), (33, 1030)]
TWO_LEVELS = [name for name, format in FORMATS.items() if format.two_levels and format.activation == "int8"]
QUANTIZED = [name for name, format in FORMATS.items() if format.quantized and format.activation == "int8"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_bytes_are_those_of_the_drawing(shape, name):
    """The layout read in plain Python gives the weight that the definition of the format gives, and unpack as well."""
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    expected = reference.quantize(weight, FORMATS[name])
    packed = ops.pack(weight, bias, FORMATS[name])
    got = decode(packed)
    assert got.format == FORMATS[name]
    assert torch.equal(got.column_scale_N, expected.column_scale_N)
    assert torch.equal(got.scale_NG, expected.scale_NG)
    assert torch.equal(got.steps_NK, expected.steps_NK)
    assert torch.equal(ops.unpack(packed), expected.value_NK)
    assert torch.equal(packed[64 : 64 + 4 * len(bias)].view(torch.float32), bias)


@pytest.mark.parametrize("name", FORMATS)
def test_a_multiplier_is_taken_out_and_put_back(name):
    weight, multiplier = torch.randn(70, 300), torch.exp2(torch.randint(-6, 7, (300,)).float())
    packed = ops.pack(weight, None, FORMATS[name], multiplier)
    expected = reference.quantize(weight / multiplier, FORMATS[name])
    assert torch.equal(ops.unpack(packed), expected.value_NK * multiplier)
    assert torch.equal(decode(packed).value_NK, ops.unpack(packed))
    assert ops.packed_info(packed).has_multiplier


@pytest.mark.parametrize("name", QUANTIZED)
def test_given_scales_are_used(name):
    """A weight that lies on a grid comes back exactly when the grid is given, whatever rounding would have chosen."""
    format = FORMATS[name]
    groups = -(-300 // format.group) if format.group else 1
    scale = (torch.rand(70, groups) + 0.5).half().float() / 1024
    if format.two_levels:
        multiplier = torch.randint(-15, 16, (70, groups))
        scale = multiplier * scale[:, :1].expand(70, groups)
    zero = torch.randint(0, 16, (70, groups)).float() if format.asymmetric else torch.zeros(70, groups)
    low, high = (-127, 127) if format.codes == "int8" else (0, 15) if format.asymmetric else (-8, 7)
    wide = format.group or 300
    codes = torch.randint(low, high + 1, (70, 300))
    weight = (codes - zero.repeat_interleave(wide, 1)[:, :300]) * scale.repeat_interleave(wide, 1)[:, :300]
    packed = ops.pack(weight, None, format, None, ops.Scales(scale, zero if format.asymmetric else None))
    assert torch.equal(ops.unpack(packed), weight)


@pytest.mark.parametrize("name", TWO_LEVELS)
def test_given_scales_without_a_common_step_become_neighbours(name):
    """Fifteenths of the block's largest, or the smallest of them; NaN takes its own output and no other."""
    format, weight = FORMATS[name], torch.randn(70, 600)
    groups = -(-600 // format.group)
    given = torch.randn(70, groups) * torch.randn(70, groups).exp()
    given[4] = 0.0
    packed = ops.pack(weight, None, format, None, ops.Scales(given))
    stored = decode(packed).scale_NG * decode(packed).column_scale_N[:, None]
    for ours, theirs in zip(stored.split(256 // format.group, 1), given.split(256 // format.group, 1), strict=True):
        assert torch.equal(ours.sign(), theirs.sign())
        step = theirs.abs().amax(1, keepdim=True).clamp(min=1e-9) / 15
        size, ideal = ours.abs() / step, (theirs.abs() / step).clamp(min=1)
        assert ((size - ideal).abs() < 0.51)[[0, 1, 2, 3, *range(5, 70)]].all()
        assert ((size - size.round()).abs() <= 15 * 2**-11).all()
    given[2, -1] = float("nan")
    spoilt = ops.unpack(ops.pack(weight, None, format, None, ops.Scales(given)))
    assert spoilt[2].isnan().any()
    assert torch.equal(spoilt[[0, 1, *range(3, 70)]], ops.unpack(packed)[[0, 1, *range(3, 70)]])


@pytest.mark.parametrize("name", TWO_LEVELS)
def test_every_block_has_its_own_step(name):
    """Blocks of other magnitudes, the last of them short, and quiet groups beside loud ones keep their proportions."""
    magnitude = torch.tensor([1.0, 1e-3, 40.0]).repeat_interleave(256)[:600]
    weight = torch.randn(64, 600) * magnitude
    error = (ops.unpack(ops.pack(weight, None, FORMATS[name])) - weight).split(256, 1)
    for part, block in zip(error, weight.split(256, 1), strict=True):
        assert part.norm() < 0.13 * block.norm()
    weight[:, :128] *= 1 / 15
    back = ops.unpack(ops.pack(weight, None, FORMATS[name]))
    assert (back - weight)[:, :128].norm() < 0.2 * weight[:, :128].norm()


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(5, 90),
        torch.full((5, 90), 3e38),
        torch.full((5, 90), 1e-40),
        torch.full((5, 90), -2.5),
        torch.randn(5, 90, generator=torch.Generator().manual_seed(0)).index_fill(1, torch.arange(32, 64), 0.0),
        torch.randn(5, 90, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 90),
    ],
    ids=["zero", "huge", "denormal", "constant", "a group of zeros", "twelve magnitudes"],
)
def test_extremes_stay_finite_and_close(weight, name):
    back = ops.unpack(ops.pack(weight, None, FORMATS[name]))
    # int4 may choose a scale that cuts off a fifth of the largest value, where the others gain by it.
    share = 1 / 127 if FORMATS[name].codes == "int8" else 0.2
    assert back.isfinite().all()
    assert (back - weight).abs().max() <= weight.abs().max() * share


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_and_stride_packs(dtype, name):
    weight = torch.randn(70, 90).to(dtype)
    assert torch.equal(ops.pack(weight.T, None, FORMATS[name]), ops.pack(weight.T.float(), None, FORMATS[name]))


@pytest.mark.parametrize("factor", [1e-30, 1e-36, 1e-40])
def test_small_weights_keep_their_proportions(factor):
    """Also where 1 / scale is no finite float: 1e-40 and 7e-40 must not become the same code."""
    weight = torch.arange(14.0).view(2, 7) * factor
    assert torch.equal(ops.unpack(ops.pack(weight, None, INT8)), reference.quantize(weight, INT8).value_NK)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_int4_scales_are_the_best_of_their_candidates(asymmetric):
    weight = torch.randn(64, 128) * torch.randn(64, 128).exp()
    format = WeightFormat("int4", "int8", 32, asymmetric)
    got = (ops.unpack(ops.pack(weight, None, format)) - weight).square().view(64, 4, 32).sum(-1)
    group = weight.view(64, 4, 32)
    low, high = group.amin(-1, keepdim=True).clamp(max=0), group.amax(-1, keepdim=True).clamp(min=0)
    zero = (-low * 15 / (high - low)).round() if asymmetric else torch.full_like(low, 8.0)
    scale = (high - low) / 15 if asymmetric else torch.maximum(high, -low) / 7
    plain = ((group / scale + zero).round().clamp(0, 15) - zero) * scale
    error = (plain - group).square().sum(-1)
    assert got.sum() < 0.98 * error.sum()
    assert (got <= error * 1.02).float().mean() > 0.9


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", FORMATS)
def test_a_bad_weight_spoils_its_output_and_no_other(bad, name):
    weight = torch.randn(5, 90)
    clean = ops.linear(torch.ones(2, 90), ops.pack(weight, None, FORMATS[name]))
    weight[3, 4] = bad
    got = ops.linear(torch.ones(2, 90), ops.pack(weight, None, FORMATS[name]))
    assert not got[:, 3].isfinite().any()
    assert torch.equal(got[:, [0, 1, 2, 4]], clean[:, [0, 1, 2, 4]])


@pytest.mark.parametrize("name", FORMATS)
def test_header_tells_what_it_is(name):
    info = ops.packed_info(ops.pack(torch.randn(10, 20), torch.randn(10), FORMATS[name]))
    assert info == ops.PackedInfo(10, 20, FORMATS[name], has_bias=True, has_multiplier=False, version=3)


@pytest.mark.parametrize("name", ["bf16", "int8", "int4 g32 asymmetric"])
def test_same_bytes_for_any_thread_count(name):
    weight = torch.randn(300, 200)
    packed = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        packed.append(ops.pack(weight, None, FORMATS[name]))
    assert all(torch.equal(packed[0], other) for other in packed)


@pytest.mark.parametrize("format", [F32, BF16, INT8, INT4], ids=str)
def test_bytes_per_weight(format):
    """What decoding has to read: codes and scales of whole groups, four bytes for each output, no more than a page."""
    packed = ops.pack(torch.randn(2048, 4096), None, format)
    bits = {"f32": 32, "bf16": 16, "int8": 8, "int4": 4.375}[format.codes]
    assert 0 <= packed.numel() - 2048 * 4096 * bits / 8 <= 4096 * 2 + 2 * 4096


def _altered(
    at: int, format: str, value: int, checksum: bool = True, shape: tuple[int, int] = (10, 20)
) -> torch.Tensor:
    header = bytearray(ops.pack(torch.randn(shape), None, INT8).tolist())
    struct.pack_into(format, header, at, value)
    if checksum:  # as a hostile writer would
        state = 0
        for (word,) in struct.iter_unpack("<Q", header[:56]):
            state = (state ^ word) * 0x9E3779B97F4A7C15 % 2**64
            state ^= state >> 32
        struct.pack_into("<Q", header, 56, state)
    return torch.frombuffer(header, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("packed", "sentence"),
    [
        (torch.zeros(10, dtype=torch.uint8), "shorter than a header"),
        (torch.zeros(4096, dtype=torch.uint8), "does not begin with the mark"),
        (_altered(8, "<I", 2), "another version of the layout"),
        (_altered(12, "<B", 9), "unknown format"),
        (_altered(13, "<B", 9), "unknown format"),
        (_altered(13, "<B", 0), "float32 activations"),
        (_altered(14, "<B", 1), "int8 weights with zeros"),
        (_altered(14, "<B", 7), "unknown format"),
        (_altered(16, "<i", 48), "groups other than"),
        (_altered(16, "<i", -32), "groups other than"),
        (_altered(12, "<B", 3), "int4 weights without groups"),
        (_altered(24, "<q", -5), "impossible sizes"),
        (_altered(24, "<q", 1 << 40), "impossible sizes"),
        (_altered(24, "<q", 11 * 64), "length that does not fit"),
        (_altered(32, "<q", 2000), "length that does not fit"),
        (_altered(15, "<B", 1, shape=(1024, 20)), "length that does not fit"),
        (_altered(20, "<I", 1, shape=(10, 1024)), "length that does not fit"),
        (_altered(40, "<q", 1), "length that does not fit"),
        (_altered(24, "<q", 11, checksum=False), "checksum"),
        (_altered(48, "<Q", 5, checksum=False), "checksum"),
        (ops.pack(torch.randn(10, 20), None, INT8)[:-256], "truncated"),
    ],
)
def test_foreign_bytes_are_refused(packed, sentence):
    for call in (ops.unpack, ops.packed_info, lambda p: ops.linear(torch.randn(2, 20), p)):
        with pytest.raises(ValueError, match=f"packed.*{sentence}"):
            call(packed.clone())


@pytest.mark.parametrize("format", [BF16, INT8, INT4], ids=str)
def test_every_length_but_the_right_one_is_refused(format):
    packed = ops.pack(torch.randn(3, 5), torch.randn(3), format)
    for size in [*range(200), *range(200, packed.numel(), 37)]:
        with pytest.raises(ValueError, match="packed"):
            ops.packed_info(packed[:size])
    with pytest.raises(ValueError, match="length that does not fit"):
        ops.packed_info(torch.cat((packed, packed[:1])))


def test_no_bit_of_a_header_may_flip():
    """And a closed page behind: refused, never a crash."""
    packed = ops.pack(torch.randn(130, 70), torch.randn(130), INT4)
    for bit in range(64 * 8):
        hostile = guarded(packed)
        hostile[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="packed"):
            ops.packed_info(hostile)
