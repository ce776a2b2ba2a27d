"""Misuse of every op: an exception that names the argument, and nothing written."""

import pytest
import torch

from torch_cpullm.formats import BF16, INT4, INT8, WeightFormat
from torch_cpullm.ops import attention, block, linear, rowwise
from torch_cpullm.ops import layers as ops_layers
from torch_cpullm.ops.attention import KvPages
from torch_cpullm.testing.pages import empty_pages

PACKED = linear.pack(torch.randn(32, 64), None, INT8)
X = torch.randn(2, 64)
ASYMMETRIC = WeightFormat("int4", "int8", 32, asymmetric=True)


def kv(**changes):
    pages = empty_pages(2, 40, 2, 32, "int8")
    fields = {"pages": pages.pages, "table_BP": pages.table_BP, "past_B": pages.past_B, "kv_heads": 2, "format": "int8"}
    return KvPages(**{**fields, **changes})


def query(*shape):
    return torch.randn(*(shape or (2, 1, 4, 32)))


def attend(pages, q=None, mask=None, soft_cap=0.0):
    return attention.paged_attention(
        query() if q is None else q, pages, 0.2, attention.ScoreRules(mask=mask, soft_cap=soft_cap)
    )


def mlp(hidden=None, gate_up=None, down=None, norm=None, activation="silu"):
    weights = block.MlpWeights(
        gate_up=gate_up if gate_up is not None else [linear.pack(torch.randn(48, 64), None, INT8)] * 2,
        down=down if down is not None else linear.pack(torch.randn(64, 48), None, INT8),
        input_norm_D=norm if norm is not None else torch.ones(64),
        output_norm_D=None,
    )
    return block.mlp_block(
        torch.randn(1, 3, 64) if hidden is None else hidden, weights, activation, block.NormNumbers(1e-6, 0.0)
    )


def attend_block(**changes):
    """An attention block of 4 heads of 32 channels over 2 KV heads, model size 64, some of its arguments changed."""
    rope = torch.ones(1, 1, 32)
    fields = {
        "hidden": torch.randn(2, 1, 64),
        "qkv": [linear.pack(torch.randn(256, 64), None, INT8)],
        "output": linear.pack(torch.randn(64, 128), None, INT8),
        "input_norm_D": torch.ones(64),
        "query_norm_C": None,
        "key_norm_C": None,
        "output_norm_D": None,
        "rope": (rope, rope),
        "kv": kv(),
        "mask": None,
        "heads": 4,
        "kv_heads": 2,
        "soft_cap": 0.0,
        **changes,
    }
    names = ("qkv", "output", "input_norm_D", "query_norm_C", "key_norm_C", "output_norm_D")
    weights = block.AttentionWeights(**{name: fields[name] for name in names})
    numbers = block.AttentionNumbers(fields["heads"], fields["kv_heads"], 0.2, fields["soft_cap"])
    pages = KvPages(**{**fields["kv"]._asdict(), "kv_heads": fields["kv_heads"]})
    norm = block.NormNumbers(1e-6, 0.0)
    return block.attention_block(fields["hidden"], weights, fields["rope"], pages, fields["mask"], numbers, norm)


def layers(**changes):
    """Two layers of such blocks by one operator, some of its lists changed."""
    one = block.AttentionWeights(
        [linear.pack(torch.randn(256, 64), None, INT8)], linear.pack(torch.randn(64, 128), None, INT8), torch.ones(64),
        None, None, None,
    )  # fmt: skip
    other = block.MlpWeights(
        [linear.pack(torch.randn(96, 64), None, INT8)],
        linear.pack(torch.randn(64, 48), None, INT8),
        torch.ones(64),
        None,
    )
    numbers = ops_layers.LayerNumbers(
        block.AttentionNumbers(4, 2, 0.2, 0.0, qkv_in_groups=changes.pop("qkv_in_groups", False)),
        changes.pop("norm", block.NormNumbers(1e-6, 0.0)),
        "silu",
        parallel=changes.pop("parallel", False),
    )
    stack = ops_layers.stack_layers([ops_layers.LayerWeights(one, other)] * changes.pop("count", 2), numbers)
    lists = list(stack.lists)
    for index, tensors in changes.pop("lists", {}).items():
        lists[index] = tensors
    rope = changes.pop("rope", (torch.ones(1, 1, 32),) * 2)
    pages = [kv().pages for _ in range(changes.pop("pages", 2))]
    return ops_layers.decoder_layers(
        torch.randn(2, 1, 64), ops_layers.LayerStack(tuple(lists), numbers, changes.pop("unrotated", ())), rope,
        ops_layers.KvLayers(pages, *kv()[1:]), None,
    )  # fmt: skip


def gradient(*shape):
    return torch.randn(*shape, requires_grad=True)


CASES = {
    "pack complex bias": (lambda: linear.pack(X, torch.ones(2, dtype=torch.complex64), INT8), TypeError, "bias"),
    "bytes of negative heads": (lambda: attention.layer_bytes(-1, 64, "int8"), ValueError, "kv_heads"),
    "pack integers": (lambda: linear.pack(torch.ones(3, 3, dtype=torch.int32), None, INT8), TypeError, "weight"),
    "pack a vector": (lambda: linear.pack(torch.randn(3), None, INT8), ValueError, "weight"),
    "pack nothing": (lambda: linear.pack(torch.randn(0, 3), None, INT8), ValueError, "weight"),
    "pack bias length": (lambda: linear.pack(torch.randn(3, 3), torch.randn(4), INT8), ValueError, "bias"),
    "pack codes": (lambda: linear.pack(X, None, WeightFormat("int3", "int8")), ValueError, "codes.*got 'int3'"),
    "pack activation": (
        lambda: linear.pack(X, None, WeightFormat("int8", "int4")),
        ValueError,
        "activation.*got 'int4'",
    ),
    "pack group": (lambda: linear.pack(X, None, WeightFormat("int8", "int8", 48)), ValueError, "group.*got 48"),
    "pack int4 without groups": (
        lambda: linear.pack(X, None, WeightFormat("int4", "int8")),
        ValueError,
        "without groups",
    ),
    "pack bf16 in groups": (lambda: linear.pack(X, None, WeightFormat("bf16", "bf16", 32)), ValueError, "with groups"),
    "pack int8 with zeros": (lambda: linear.pack(X, None, WeightFormat("int8", "int8", 32, True)), ValueError, "zeros"),
    "pack int8, float x": (lambda: linear.pack(X, None, WeightFormat("int8", "f32")), ValueError, "activations"),
    "pack multiplier length": (lambda: linear.pack(X, None, INT8, torch.ones(5)), ValueError, "multiplier"),
    "pack multiplier of zero": (lambda: linear.pack(X, None, INT8, torch.zeros(64)), ValueError, "multiplier.*got 0"),
    "pack multiplier of NaN": (lambda: linear.pack(X, None, INT8, X[0] * float("nan")), ValueError, "multiplier"),
    "pack scale shape": (
        lambda: linear.pack(X, None, INT4, None, linear.Scales(torch.ones(2, 3))),
        ValueError,
        "scale.*groups",
    ),
    "pack scale of floats": (lambda: linear.pack(X, None, BF16, None, linear.Scales(X[:, :1])), ValueError, "scale"),
    "pack scale, no zero": (
        lambda: linear.pack(X, None, ASYMMETRIC, None, linear.Scales(torch.ones(2, 2))),
        ValueError,
        "zero",
    ),
    "pack zero of 16": (
        lambda: linear.pack(X, None, ASYMMETRIC, None, linear.Scales(torch.ones(2, 2), torch.full((2, 2), 16.0))),
        ValueError,
        "zero.*0 to 15, got 16",
    ),
    "pack zero, symmetric": (
        lambda: linear.pack(X, None, INT4, None, linear.Scales(torch.ones(2, 2), torch.ones(2, 2))),
        ValueError,
        "zero",
    ),
    "embed floats": (lambda: linear.embed(X, PACKED, torch.float32), TypeError, "ids"),
    "embed out of range": (lambda: linear.embed(torch.tensor([32]), PACKED, torch.float32), IndexError, "ids.*got 32"),
    "embed negative": (lambda: linear.embed(torch.tensor([-1]), PACKED, torch.float32), IndexError, "ids.*got -1"),
    "embed dtype": (lambda: linear.embed(torch.tensor([1]), PACKED, torch.float64), TypeError, "dtype"),
    "linear width": (lambda: linear.linear(torch.randn(2, 63), PACKED), ValueError, "x: expected the last dimension"),
    "linear dtype": (lambda: linear.linear(X.double(), PACKED), TypeError, "x: expected float32"),
    "linear gradient": (
        lambda: linear.linear(X.clone().requires_grad_(), PACKED),
        NotImplementedError,
        "x: .*gradient",
    ),
    "linear scalar": (lambda: linear.linear(torch.tensor(1.0), PACKED), ValueError, "x"),
    "linear weight dtype": (lambda: linear.linear(X, PACKED.int()), TypeError, "packed"),
    "linear weight rank": (lambda: linear.linear(X, PACKED[None]), ValueError, "packed"),
    "linear weight address": (
        lambda: linear.linear(X, torch.cat((PACKED[:1], PACKED))[1:]),
        ValueError,
        r"packed: .*clone\(\)",
    ),
    "norm width": (lambda: rowwise.rms_norm(X, torch.ones(63), 1e-6), ValueError, "x"),
    "norm rank": (lambda: rowwise.rms_norm(X, torch.ones(1, 64), 1e-6), ValueError, "weight"),
    "layer norm width": (lambda: rowwise.layer_norm(X, torch.ones(63)), ValueError, "x"),
    "layer norm rank": (lambda: rowwise.layer_norm(X, torch.ones(1, 64)), ValueError, "weight"),
    "layer norm bias": (lambda: rowwise.layer_norm(X, torch.ones(64), torch.ones(63)), ValueError, "bias"),
    "layer norm bias dtype": (lambda: rowwise.layer_norm(X, torch.ones(64), torch.ones(64).half()), TypeError, "bias"),
    "rope rank": (lambda: rowwise.rope(X, X, X), ValueError, "x"),
    "rope tables": (lambda: rowwise.rope(query(), torch.ones(2, 1, 32), torch.ones(2, 1, 16)), ValueError, "sin"),
    "rope tokens": (lambda: rowwise.rope(query(), torch.ones(2, 3, 32), torch.ones(2, 3, 32)), ValueError, "cos"),
    "rope odd": (lambda: rowwise.rope(query(), torch.ones(2, 1, 7), torch.ones(2, 1, 7)), ValueError, "cos"),
    "rope too wide": (lambda: rowwise.rope(query(), torch.ones(2, 1, 34), torch.ones(2, 1, 34)), ValueError, "cos"),
    "gate shapes": (lambda: rowwise.gated(X, X[:1], "silu"), ValueError, "up"),
    "gate name": (lambda: rowwise.gated(X, X, "swish"), ValueError, "activation"),
    "head size": (lambda: attention.layer_bytes(2, 20, "int8"), ValueError, "head size.*16.*got 20"),
    "head size of a query": (lambda: attend(kv(), query(2, 1, 4, 20)), ValueError, "head size"),
    "head size too large": (lambda: attention.layer_bytes(1, 272, "f32"), ValueError, "head size"),
    "pages dtype": (lambda: attend(kv(pages=kv().pages.char())), TypeError, "pages"),
    "pages that overlap": (lambda: attend(kv(pages=kv().pages[:1].expand(6, -1))), ValueError, "pages: .*overlap"),
    "pages width": (lambda: attend(kv(pages=kv().pages[:, 1:])), ValueError, "pages"),
    "pages of another format": (lambda: attend(kv(format="f32")), ValueError, "pages"),
    "kv heads": (lambda: attend(kv(kv_heads=0)), ValueError, "kv_heads"),
    "table dtype": (lambda: attend(kv(table_BP=kv().table_BP.long())), TypeError, "page_table"),
    "table rows": (lambda: attend(kv(table_BP=kv().table_BP[:1])), ValueError, "page_table"),
    "table too short": (lambda: attend(kv(past_B=torch.tensor([0, 64], dtype=torch.int32))), ValueError, "page_table"),
    "table beyond the pool": (lambda: attend(kv(table_BP=kv().table_BP + 90)), IndexError, "page_table"),
    "table negative": (lambda: attend(kv(table_BP=kv().table_BP - 90)), IndexError, "page_table"),
    "past negative": (lambda: attend(kv(past_B=torch.tensor([0, -1], dtype=torch.int32))), ValueError, "past"),
    "past length": (lambda: attend(kv(past_B=torch.zeros(3, dtype=torch.int32))), ValueError, "past"),
    "past dtype": (lambda: attend(kv(past_B=torch.zeros(2))), TypeError, "past"),
    "heads": (lambda: attend(kv(), query(2, 1, 3, 32)), ValueError, "heads"),
    "mask dtype": (lambda: attend(kv(), mask=torch.zeros(2, 1, 1, 1, dtype=torch.int32)), TypeError, "mask"),
    "mask rank": (lambda: attend(kv(), mask=torch.ones(2, 1, dtype=torch.bool)), ValueError, "mask"),
    "mask too short": (
        lambda: attend(
            kv(past_B=torch.full((2,), 5, dtype=torch.int32)), mask=torch.ones(2, 1, 1, 5, dtype=torch.bool)
        ),
        ValueError,
        "mask",
    ),
    "soft cap": (lambda: attend(kv(), soft_cap=-1.0), ValueError, "soft_cap"),
    "query dtype": (lambda: attend(kv(), query().int()), TypeError, "query"),
    "append shapes": (
        lambda: attention.kv_append(kv(), torch.randn(2, 1, 2, 32), torch.randn(2, 1, 2, 16)),
        ValueError,
        "value",
    ),
    "append too much": (lambda: attention.kv_append(kv(), *[torch.randn(2, 65, 2, 32)] * 2), ValueError, "page_table"),
    "gather too much": (lambda: attention.kv_gather(kv(), 65, 32), ValueError, "length"),
    "slim lengths": (
        lambda: attention.slim_attention(query(2, 9, 4, 32), *[torch.randn(2, 8, 2, 32)] * 2, 0.2),
        ValueError,
        "key",
    ),
    "mlp hidden rank": (lambda: mlp(hidden=X), ValueError, "hidden"),
    "mlp depth": (lambda: mlp(hidden=torch.randn(1, 3, 60), norm=torch.ones(60)), ValueError, "gate_up"),
    "mlp outputs": (lambda: mlp(gate_up=[PACKED]), ValueError, "gate_up"),
    "mlp mixed formats": (
        lambda: mlp(gate_up=[linear.pack(torch.randn(48, 64), None, f) for f in (INT8, BF16)]),
        ValueError,
        "gate_up",
    ),
    "mlp down": (lambda: mlp(down=linear.pack(torch.randn(60, 48), None, INT8)), ValueError, "down"),
    "mlp norm": (lambda: mlp(norm=torch.ones(63)), ValueError, "input_norm"),
    "mlp activation": (lambda: mlp(activation="tanh"), ValueError, "activation"),
    "layers, none": (lambda: layers(lists={1: []}), ValueError, "output: expected one packed weight for each layer"),
    "layers, qkv": (
        lambda: layers(lists={0: [PACKED] * 3}),
        ValueError,
        "qkv: expected equally many .* 2 layers, got 3",
    ),
    "layers, no qkv": (lambda: layers(lists={0: []}), ValueError, "qkv"),
    "layers, a norm": (
        lambda: layers(lists={2: [torch.ones(64)]}),
        ValueError,
        "attention_norm: expected one for each of 2 layers, or none, got 1",
    ),
    "layers, down": (lambda: layers(lists={8: []}), ValueError, "down: expected one for each of 2 layers, got 0"),
    "layers, unrotated": (lambda: layers(unrotated=(2,)), ValueError, "unrotated: expected .* 2 layers, got 2"),
    "layers, a bias": (
        lambda: layers(lists={3: [torch.zeros(64)] * 2}),
        ValueError,
        "input_norm_bias: expected none without a centred norm",
    ),
    "layers, parallel": (
        lambda: layers(parallel=True, lists={6: [torch.ones(64)] * 2}),
        ValueError,
        "attention_output_norm .*: expected none, since the layers are parallel",
    ),
    "layers, offset": (lambda: layers(norm=block.NormNumbers(1e-6, 1.0, True)), ValueError, "norm_offset: expected 0"),
    "layers, groups": (
        lambda: layers(qkv_in_groups=True, lists={0: [linear.pack(torch.randn(128, 64), None, INT8)] * 4}),
        ValueError,
        "qkv: expected one fused weight",
    ),
    "layers, pages": (lambda: layers(pages=1), ValueError, "pages: expected one for each of 2 layers, got 1"),
    "layers, cos": (lambda: layers(rope=(torch.ones(1, 1, 32).int(), torch.ones(1, 1, 32))), TypeError, "cos"),
    "mlp halves": (
        lambda: mlp(gate_up=[linear.pack(torch.randn(n, 64), None, INT8) for n in (40, 56)]),
        ValueError,
        "up",
    ),
    "mlp thirds": (lambda: mlp(gate_up=[linear.pack(torch.randn(32, 64), None, INT8)] * 3), ValueError, "gate_up"),
    "mlp no weights": (lambda: mlp(gate_up=()), ValueError, "gate_up"),
    "mlp hidden dtype": (lambda: mlp(hidden=torch.zeros(1, 3, 64, dtype=torch.int8)), TypeError, "hidden"),
    "gather negative": (lambda: attention.kv_gather(kv(), -1, 32), ValueError, "length"),
    "gather table": (lambda: attention.kv_gather(kv(table_BP=kv().table_BP + 90), 40, 32), IndexError, "page_table"),
    "gather format": (lambda: attention.kv_gather(kv(format="fp8"), 40, 32), ValueError, "format"),
    "append head size": (lambda: attention.kv_append(kv(), *[torch.randn(2, 1, 2, 20)] * 2), ValueError, "head size"),
    "append dtype": (lambda: attention.kv_append(kv(), *[torch.ones(2, 1, 2, 32).int()] * 2), TypeError, "key"),
    "append rank": (lambda: attention.kv_append(kv(), *[torch.randn(2, 2, 32)] * 2), ValueError, "key"),
    "query rank": (lambda: attend(kv(), torch.randn(2, 4, 32)), ValueError, "query"),
    "pages rank": (lambda: attend(kv(pages=kv().pages.flatten())), ValueError, "pages"),
    "mask heads": (lambda: attend(kv(), mask=torch.ones(2, 3, 1, 9, dtype=torch.bool)), ValueError, "mask"),
    "mask batch": (lambda: attend(kv(), mask=torch.ones(3, 1, 1, 9, dtype=torch.bool)), ValueError, "mask"),
    "mask stride": (lambda: attend(kv(), mask=torch.ones(2, 1, 9, 9, dtype=torch.bool)[..., ::2]), ValueError, "mask"),
    "slim head size": (
        lambda: attention.slim_attention(*[torch.randn(1, 2, 2, 20)] * 3, 0.2),
        ValueError,
        "head size",
    ),
    "slim channels": (
        lambda: attention.slim_attention(query(), *[torch.randn(2, 1, 2, 16)] * 2, 0.2),
        ValueError,
        "key",
    ),
    "slim value": (
        lambda: attention.slim_attention(query(), torch.randn(2, 1, 2, 32), torch.randn(2, 2, 2, 32), 0.2),
        ValueError,
        "value",
    ),
    "block hidden rank": (lambda: attend_block(hidden=torch.randn(2, 64)), ValueError, "hidden"),
    "block hidden dtype": (lambda: attend_block(hidden=torch.zeros(2, 1, 64).double()), TypeError, "hidden"),
    "block depth": (lambda: attend_block(qkv=[linear.pack(torch.randn(256, 60), None, INT8)]), ValueError, "qkv"),
    "block outputs": (lambda: attend_block(qkv=[PACKED]), ValueError, "qkv"),
    "block no weights": (lambda: attend_block(qkv=[]), ValueError, "qkv"),
    "block foreign weights": (lambda: attend_block(qkv=[torch.zeros(512, dtype=torch.uint8)]), ValueError, "qkv"),
    "block output": (
        lambda: attend_block(output=linear.pack(torch.randn(60, 128), None, BF16)),
        ValueError,
        "output",
    ),
    "block output dtype": (lambda: attend_block(output=torch.randn(64, 128)), TypeError, "output"),
    "block norm": (lambda: attend_block(input_norm_D=torch.ones(63)), ValueError, "input_norm"),
    "block query norm": (lambda: attend_block(query_norm_C=torch.ones(64)), ValueError, "query_norm"),
    "block key norm": (lambda: attend_block(key_norm_C=torch.ones(1, 32)), ValueError, "key_norm"),
    "block output norm": (lambda: attend_block(output_norm_D=torch.ones(64).int()), TypeError, "output_norm"),
    "block rope": (lambda: attend_block(rope=(torch.ones(1, 2, 32),) * 2), ValueError, "cos"),
    "block rope batch": (lambda: attend_block(rope=(torch.ones(3, 1, 32),) * 2), ValueError, "cos"),
    "block heads": (lambda: attend_block(heads=0), ValueError, "heads"),
    "block head size": (lambda: attend_block(heads=3), ValueError, "head size"),
    "block kv heads": (lambda: attend_block(kv_heads=0), ValueError, "kv_heads"),
    "block pages": (lambda: attend_block(kv=kv(format="bf16")), ValueError, "pages"),
    "block table": (lambda: attend_block(kv=kv(table_BP=kv().table_BP + 90)), IndexError, "page_table"),
    "block past": (lambda: attend_block(kv=kv(past_B=-torch.ones(2, dtype=torch.int32))), ValueError, "past"),
    "block mask": (lambda: attend_block(mask=torch.ones(2, 1, 1, 0, dtype=torch.bool)), ValueError, "mask"),
    "block mask dtype": (lambda: attend_block(mask=torch.ones(2, 1, 1, 1, dtype=torch.int32)), TypeError, "mask"),
    "block soft cap": (lambda: attend_block(soft_cap=-1.0), ValueError, "soft_cap"),
    "norm gradient": (lambda: rowwise.rms_norm(gradient(2, 8), torch.ones(8), 1e-6), NotImplementedError, "x: .*grad"),
    "norm gain gradient": (lambda: rowwise.rms_norm(X, gradient(64), 1e-6), NotImplementedError, "weight: .*grad"),
    "rope gradient": (
        lambda: rowwise.rope(gradient(2, 1, 4, 32), *[torch.ones(1, 1, 32)] * 2),
        NotImplementedError,
        "x: .*grad",
    ),
    "gate gradient": (lambda: rowwise.gated(X, gradient(2, 64), "silu"), NotImplementedError, "up: .*grad"),
    "append gradient": (
        lambda: attention.kv_append(kv(), gradient(2, 1, 2, 32), torch.randn(2, 1, 2, 32)),
        NotImplementedError,
        "key: .*grad",
    ),
    "query gradient": (lambda: attend(kv(), gradient(2, 1, 4, 32)), NotImplementedError, "query: .*grad"),
    "slim gradient": (
        lambda: attention.slim_attention(query(), torch.randn(2, 1, 2, 32), gradient(2, 1, 2, 32), 0.2),
        NotImplementedError,
        "value: .*grad",
    ),
    "block gradient": (lambda: attend_block(hidden=gradient(2, 1, 64)), NotImplementedError, "hidden: .*grad"),
    "mlp gradient": (lambda: mlp(norm=gradient(64)), NotImplementedError, "input_norm: .*grad"),
}


@pytest.mark.parametrize("case", CASES)
def test_misuse_is_named(case):
    call, error, words = CASES[case]
    with pytest.raises(error, match=words):
        call()


ELSEWHERE = {
    "linear x": (lambda meta: linear.linear(meta(X), PACKED), "x"),
    "linear packed": (lambda meta: linear.linear(X, meta(PACKED)), "packed"),
    "unpack": (lambda meta: linear.unpack(meta(PACKED)), "packed"),
    "pack": (lambda meta: linear.pack(X, meta(torch.ones(2)), INT8), "bias"),
    "norm": (lambda meta: rowwise.rms_norm(meta(X), torch.ones(64), 1e-6), "x"),
    "rope": (lambda meta: rowwise.rope(query(), meta(torch.ones(1, 1, 32)), torch.ones(1, 1, 32)), "cos"),
    "gate": (lambda meta: rowwise.gated(X, meta(X), "silu"), "up"),
    "append": (lambda meta: attention.kv_append(kv(pages=meta(kv().pages)), *[torch.randn(2, 1, 2, 32)] * 2), "pages"),
    "gather": (lambda meta: attention.kv_gather(kv(table_BP=meta(kv().table_BP)), 40, 32), "page_table"),
    "attention": (lambda meta: attend(kv(), mask=meta(torch.ones(2, 1, 1, 40, dtype=torch.bool))), "mask"),
    "slim": (lambda meta: attention.slim_attention(query(), *[meta(query())] * 2, 0.2), "key"),
    "block": (lambda meta: attend_block(hidden=meta(torch.randn(2, 1, 64))), "hidden"),
    "block weight": (lambda meta: attend_block(qkv=[meta(PACKED)]), "qkv"),
    "mlp": (lambda meta: mlp(norm=meta(torch.ones(64))), "input_norm"),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_tensors_without_data_are_refused(case):
    call, name = ELSEWHERE[case]
    with pytest.raises(RuntimeError, match=f"{name}: expected a tensor on the CPU, got one on meta"):
        call(lambda x: x.to("meta"))


def test_gradients_are_no_matter_without_grad_mode():
    with torch.no_grad():
        assert torch.equal(linear.linear(X.clone().requires_grad_(), PACKED), linear.linear(X, PACKED))
        mlp(norm=gradient(64))


def test_a_refused_append_writes_nothing():
    pages = kv(past_B=torch.tensor([0, 60], dtype=torch.int32))
    before = pages.pages.clone()
    with pytest.raises(ValueError, match="page_table"):
        attention.kv_append(pages, *[torch.randn(2, 5, 2, 32)] * 2)
    assert torch.equal(pages.pages, before)
