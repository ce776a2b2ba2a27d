"""The packed layout: what goes in comes out, and foreign bytes are refused by name."""

import struct

import pytest
import torch

from torch_cpullm.ops import linear as ops
from torch_cpullm.reference import linear as reference
from torch_cpullm.testing.guard import guarded

SHAPES = [(1, 1), (63, 255), (64, 256), (65, 257), (128, 512), (100, 70), (33, 1030)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", ["f32", "bf16", "int8"])
def test_unpack_gives_the_rounded_weight(shape, format):
    weight = torch.randn(shape)
    assert torch.equal(ops.unpack(ops.pack(weight, None, format)), reference.round_weight(weight, format))


@pytest.mark.parametrize("weight", [torch.zeros(5, 9), torch.full((5, 9), 3e38), torch.full((5, 9), 1e-40)])
def test_int8_extremes_stay_finite(weight):
    back = ops.unpack(ops.pack(weight, None, "int8"))
    assert back.isfinite().all()
    assert (back - weight).abs().max() <= weight.abs().max() / 127


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_and_stride_packs(dtype):
    weight = torch.randn(70, 40).to(dtype)
    assert torch.equal(ops.pack(weight.T, None, "f32"), ops.pack(weight.T.contiguous().float(), None, "f32"))


def test_codes_and_scales_are_those_of_the_definition():
    """Byte for byte: code + 128 at [panel][k / 4][n][k % 4], the code of zero in the padding, scales before them."""
    columns, depth = 70, 10
    weight, bias = torch.randn(columns, depth), torch.randn(columns)
    codes, scales = reference.quantize_weight(weight)
    packed = ops.pack(weight, bias, "int8")
    padded = torch.zeros(128, 12)
    padded[:columns, :depth] = codes
    panels = (padded.view(2, 64, 3, 4).permute(0, 2, 1, 3) + 128).to(torch.uint8).flatten()
    assert torch.equal(packed[-panels.numel() :], panels)
    assert torch.equal(packed[64 : 64 + 4 * columns].view(torch.float32), bias)
    assert torch.equal(packed[64 + 320 : 64 + 320 + 4 * columns].view(torch.float32), scales)  # 320: 4N in whole lines


@pytest.mark.parametrize("factor", [1e-30, 1e-36, 1e-40])
def test_small_weights_keep_their_proportions(factor):
    """Also where 1 / scale is no finite float: 1e-40 and 7e-40 must not become the same code."""
    weight = torch.arange(14.0).view(2, 7) * factor
    assert torch.equal(ops.unpack(ops.pack(weight, None, "int8")), reference.round_weight(weight, "int8"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("format", ["f32", "bf16", "int8"])
def test_a_bad_weight_spoils_its_output_and_no_other(bad, format):
    weight = torch.randn(5, 9)
    clean = ops.linear(torch.ones(2, 9), ops.pack(weight, None, format))
    weight[3, 4] = bad
    got = ops.linear(torch.ones(2, 9), ops.pack(weight, None, format))
    assert not got[:, 3].isfinite().any()
    assert torch.equal(got[:, [0, 1, 2, 4]], clean[:, [0, 1, 2, 4]])


def test_header_tells_what_it_is():
    info = ops.packed_info(ops.pack(torch.randn(10, 20), torch.randn(10), "int8"))
    assert info == ops.PackedInfo(out_features=10, in_features=20, format="int8", has_bias=True, version=1)


def test_same_bytes_for_any_thread_count():
    weight = torch.randn(300, 200)
    packed = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        packed.append(ops.pack(weight, None, "int8"))
    assert all(torch.equal(packed[0], other) for other in packed)


def _altered(at: int, format: str, value: int) -> torch.Tensor:
    packed = ops.pack(torch.randn(10, 20), None, "int8")
    packed[at : at + struct.calcsize(format)] = torch.frombuffer(
        bytearray(struct.pack(format, value)), dtype=torch.uint8
    )
    return packed


@pytest.mark.parametrize(
    ("packed", "sentence"),
    [
        (torch.zeros(10, dtype=torch.uint8), "shorter than a header"),
        (torch.zeros(4096, dtype=torch.uint8), "does not begin with the mark"),
        (_altered(8, "<I", 99), "another version of the layout"),
        (_altered(12, "<I", 7), "unknown format"),
        (_altered(16, "<q", -5), "impossible sizes"),
        (_altered(16, "<q", 1 << 40), "impossible sizes"),
        (_altered(16, "<q", 11 * 64), "length that does not fit"),
        (_altered(24, "<q", 2000), "length that does not fit"),
        (_altered(32, "<I", 1), "length that does not fit"),
        (_altered(36, "<I", 128), "another activation group"),
        (_altered(40, "<q", 1), "length that does not fit"),
        (ops.pack(torch.randn(10, 20), None, "int8")[:-256], "truncated"),
    ],
)
def test_foreign_bytes_are_refused(packed, sentence):
    for call in (ops.unpack, ops.packed_info, lambda p: ops.linear(torch.randn(2, 20), p)):
        with pytest.raises(ValueError, match=f"packed.*{sentence}"):
            call(packed.clone())


def test_every_length_but_the_right_one_is_refused():
    packed = ops.pack(torch.randn(3, 5), torch.randn(3), "int8")
    for size in range(packed.numel()):
        with pytest.raises(ValueError, match="packed"):
            ops.packed_info(packed[:size])
    with pytest.raises(ValueError, match="length that does not fit"):
        ops.packed_info(torch.cat((packed, packed[:1])))


def test_no_header_leads_outside_its_bytes():
    """Bits of the header flipped at random, and a closed page behind: refused, or read within bounds; never a crash."""
    packed = ops.pack(torch.randn(130, 70), torch.randn(130), "int8")
    for bit in range(64 * 8):
        hostile = guarded(packed)
        hostile[bit // 8] ^= 1 << bit % 8
        try:
            info = ops.packed_info(hostile)
        except ValueError:
            continue
        assert ops.unpack(hostile).shape == (info.out_features, info.in_features)
        ops.linear(torch.randn(1, info.in_features), hostile)
