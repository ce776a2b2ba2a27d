"""The packed layout: what goes in comes out, and foreign bytes are refused by name."""

import struct

import pytest
import torch

from torch_cpullm.ops import linear as ops
from torch_cpullm.reference import linear as reference

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
