"""Packing and multiplying with shapes, flags and bytes drawn at random. `make fuzz` runs it under the sanitizers."""

import pytest
import torch
from hypothesis import strategies as st

from torch_cpullm.ops import linear as ops
from torch_cpullm.testing.formats import FORMATS
from torch_cpullm.testing.fuzz import fuzz
from torch_cpullm.testing.guard import guarded

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPREADS = [0.0, 1.0, 4.0]  # exponents of the magnitudes: all alike, or over decades


def values(shape, spread, generator):
    x = torch.randn(shape, generator=generator)
    return x * torch.exp(torch.randn(shape, generator=generator) * spread)


def given_scales(format, columns, depth, generator):
    groups = -(-depth // format.group) if format.group else 1
    scale = torch.rand(columns, groups, generator=generator) + 0.01
    zero = torch.randint(0, 16, (columns, groups), generator=generator).float() if format.asymmetric else None
    return ops.Scales(scale, zero)


@st.composite
def problems(draw):
    format = FORMATS[draw(st.sampled_from(sorted(FORMATS)))]
    return {
        "format": format,
        "rows": draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 127, 128, 129, 140]))),
        "columns": draw(st.integers(1, 200)),
        "depth": draw(st.one_of(st.integers(1, 600), st.sampled_from([255, 256, 257, 511, 512, 513]))),
        "bias": draw(st.booleans()),
        "multiplier": draw(st.booleans()),
        "scales": format.quantized and draw(st.booleans()),
        "x": draw(st.sampled_from(DTYPES)),
        "weight": draw(st.sampled_from(DTYPES)),
        "spread": draw(st.sampled_from(SPREADS)),
        "bad": draw(st.sampled_from([None, None, None, float("nan"), float("inf")])),
        "threads": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 2**31)),
        "flip": draw(st.integers(0, 64 * 8 - 1)),
    }


def run(problem):
    generator = torch.Generator().manual_seed(problem["seed"])
    columns, depth, format = problem["columns"], problem["depth"], problem["format"]
    torch.set_num_threads(problem["threads"])
    weight = values((columns, depth), problem["spread"], generator).to(problem["weight"])
    bias = values((columns,), 1.0, generator) if problem["bias"] else None
    multiplier = torch.exp2(torch.randint(-9, 10, (depth,), generator=generator).float())
    scales = given_scales(format, columns, depth, generator) if problem["scales"] else None
    packed = guarded(
        ops.pack(guarded(weight), bias, format, guarded(multiplier) if problem["multiplier"] else None, scales)
    )
    x = values((problem["rows"], depth), problem["spread"], generator).to(problem["x"])
    bad = int(torch.randint(0, problem["rows"], (), generator=generator))
    if problem["bad"] is not None:
        x[bad, -1] = problem["bad"]
    y = ops.linear(guarded(x), packed)
    assert y.shape == (problem["rows"], columns)
    for row in {0, bad, problem["rows"] - 1}:
        alone = ops.linear(guarded(x[row]), packed)
        assert torch.equal(alone.nan_to_num(), y[row].nan_to_num())
        assert problem["bad"] is None or row != bad or not alone.isfinite().any()
    ids = torch.randint(0, columns, (3,), generator=generator)
    assert torch.equal(ops.embed(ids, packed, torch.float32).nan_to_num(), ops.unpack(packed)[ids].nan_to_num())
    packed[problem["flip"] // 8] ^= 1 << problem["flip"] % 8
    with pytest.raises(ValueError, match="packed"):
        ops.linear(x, packed)


def test_fuzz(request):
    fuzz(problems(), run, request.config.getoption("--fuzz-cases"))
