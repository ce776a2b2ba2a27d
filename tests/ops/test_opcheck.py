"""torch.library.opcheck on every op: schema, fake kernel, mutation and functionalisation agree with the real thing."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_cpullm.formats import INT8
from torch_cpullm.ops.attention import layer_bytes
from torch_cpullm.ops.comm import shm_create
from torch_cpullm.ops.library import kernels
from torch_cpullm.ops.linear import pack
from torch_cpullm.testing.formats import FORMATS

PACKED = pack(torch.randn(64, 64), None, INT8)
TABLE = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
PAST = torch.tensor([3, 3], dtype=torch.int32)
ALONE, _ = shm_create(1, 60.0)  # a group of one rank
FILTERS = (0.8, 5, 0.9, 0.01, 1.2)  # temperature, top_k, top_p, min_p, repetition_penalty


def pages(format="int8"):
    return torch.zeros(4, layer_bytes(2, 32, format), dtype=torch.uint8)


def arguments():
    q, k = torch.randn(2, 2, 4, 32), torch.randn(2, 2, 2, 32)
    rope = torch.ones(2, 2, 32)
    qkv = [pack(torch.randn(256, 64), None, INT8)]
    attention = (torch.randn(2, 2, 64), qkv, pack(torch.randn(64, 128), None, INT8), torch.ones(64), *[None] * 4)
    numbers = (4, 2, "int8", 1e-6, 0.0, False, 0.2, 0.0, False, False)
    gate_up = [pack(torch.randn(32, 64), None, INT8)] * 2
    down, norm = pack(torch.randn(64, 32), None, INT8), torch.ones(64)
    return {
        "pack": (torch.randn(70, 50), torch.randn(70), "int8", "int8", 0, False, None, None, None, True),
        "embed": (torch.tensor([[1, 2, 3]]), PACKED, torch.bfloat16),
        "unpack": (PACKED,),
        "linear": (torch.randn(3, 64), PACKED),
        "slice_packed": (PACKED, [0, 5, 7, 64], 0, 32, True),
        "rms_norm": (torch.randn(3, 8), torch.ones(8), 1e-6, 0.0),
        "layer_norm": (torch.randn(3, 8), torch.ones(8), torch.ones(8), 1e-6),
        "rope": (q, rope, rope, False),
        "gated": (torch.randn(3, 8), torch.randn(3, 8), "silu"),
        "sum_parts": ([torch.randn(3, 8), torch.randn(3, 8)], torch.randn(3, 8).bfloat16()),
        "all_reduce_": (torch.randn(3, 8), ALONE),
        "broadcast_": (torch.randn(3, 8), 0, ALONE),
        "all_gather": (torch.randn(3, 8), ALONE),
        "sample": (torch.randn(2, 9), torch.tensor([[1], [2]]), torch.rand(2, dtype=torch.float64), *FILTERS),
        "kv_append": (pages(), TABLE, PAST, k, k, "int8"),
        "kv_gather": (pages(), TABLE, 5, 2, 32, "int8"),
        "paged_attention": (q, pages(), TABLE, PAST, None, None, None, None, 2, "int8", 0.2, 0.0, 0),
        "slim_attention": (q, k, k, None, None, None, 0.2, 0.0, 0),
        "attention_block": (*attention, rope, rope, pages(), TABLE, PAST, None, *numbers, ALONE),
        "mlp_block": (torch.randn(2, 2, 64), gate_up, down, norm, norm, None, "relu", 1e-6, 0.0, True, ALONE),
        "decoder_layers": (
            torch.randn(2, 2, 64),
            qkv * 2,
            [attention[2]] * 2,
            [norm] * 2,
            [norm] * 2,
            *([], [], []),
            gate_up * 2,
            [down] * 2,
            [norm] * 2,
            [norm] * 2,
            [],
            rope,
            rope,
            [1],
            [pages(), pages()],
            TABLE,
            PAST,
            None,
            *(4, 2, "int8", "silu", 1e-6, 0.0, True, 0.2, 0.0, False, True, True, ALONE, ALONE),
        ),
    }


@pytest.mark.parametrize("name", arguments())
def test_opcheck(name):
    # The sizes of unpack, slice_packed, linear and embed lie in the packed bytes: their fake results have unbacked
    # sizes, which the dynamic tracing test cannot compare.
    utilities = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if name not in ("unpack", "slice_packed", "linear", "embed"):
        utilities.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(kernels, name), arguments()[name], test_utils=utilities)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(70, 50), (64, 256), (65, 300), (3, 1), (130, 513)])
def test_the_fake_pack_knows_the_size(shape, format):
    form = FORMATS[format]
    weight, bias, multiplier = torch.randn(shape), torch.randn(shape[0]), torch.ones(shape[1])
    arguments = (form.codes, form.activation, form.group, form.asymmetric)
    for options in ((None, *arguments, None), (bias, *arguments, multiplier)):
        real = kernels.pack(weight, *options, None, None, True)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert kernels.pack(weight, *options, None, None, True).shape == real.shape
