"""Packing a module, and what the check says of it."""

import pytest
import torch

from torch_cpullm.formats import BF16, INT8
from torch_cpullm.ops.linear import linear
from torch_cpullm.pack import check_packed_linear, pack_linear, random_rows
from torch_cpullm.testing.formats import FORMATS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_ordinary_weights_pass(name, dtype, bias):
    format = FORMATS[name]
    module = torch.nn.Linear(200, 96, bias=bias).to(dtype)
    packed = pack_linear(module, format)
    result = check_packed_linear(module, packed, format, random_rows(200))
    assert result.passed
    assert result.error > 0 or name == "f32"
    with torch.no_grad():
        x = torch.randn(3, 200).to(dtype)
        assert torch.allclose(
            linear(x, packed).float(), module(x).float(), atol=0.5 if format.codes == "int4" else 0.05
        )


def test_a_row_of_outliers_does_not():
    module = torch.nn.Linear(256, 64, bias=False)
    with torch.no_grad():
        module.weight.mul_(1e-3)
        module.weight[:, 7] = 100.0
        module.weight[:, 8] = -100.0
    x = torch.zeros(1, 256)
    x[0, :7] = 1.0
    packed = pack_linear(module, INT8)
    assert (linear(x, packed) == 0).all()  # all that is not an outlier is gone
    assert check_packed_linear(module, pack_linear(module, BF16), BF16, random_rows(256)).passed


def test_nan_weights_do_not_pass():
    module = torch.nn.Linear(64, 64)
    with torch.no_grad():
        module.weight[3, 3] = float("nan")
    assert not check_packed_linear(module, pack_linear(module, INT8), INT8, random_rows(64)).passed
