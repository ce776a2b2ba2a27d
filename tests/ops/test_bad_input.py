"""Misuse of every op: an exception that names the argument, and nothing written."""

import pytest
import torch

from torch_cpullm.ops import attention, block, linear, rowwise
from torch_cpullm.ops.attention import KvPages
from torch_cpullm.testing.pages import empty_pages

PACKED = linear.pack(torch.randn(32, 64), None, "int8")
X = torch.randn(2, 64)


def kv(**changes):
    pages = empty_pages(2, 40, 2, 32, "int8")
    fields = {"pages": pages.pages, "table_BP": pages.table_BP, "past_B": pages.past_B, "kv_heads": 2, "format": "int8"}
    return KvPages(**{**fields, **changes})


def query(*shape):
    return torch.randn(*(shape or (2, 1, 4, 32)))


def attend(pages, q=None, mask=None, soft_cap=0.0):
    return attention.paged_attention(query() if q is None else q, pages, mask, 0.2, soft_cap)


def mlp(hidden=None, gate_up=None, down=None, norm=None, activation="silu"):
    weights = block.MlpWeights(
        gate_up=gate_up or [linear.pack(torch.randn(48, 64), None, "int8")] * 2,
        down=down if down is not None else linear.pack(torch.randn(64, 48), None, "int8"),
        input_norm_D=norm if norm is not None else torch.ones(64),
        output_norm_D=None,
    )
    return block.mlp_block(
        torch.randn(1, 3, 64) if hidden is None else hidden, weights, activation, block.NormNumbers(1e-6, 0.0)
    )


CASES = {
    "pack integers": (lambda: linear.pack(torch.ones(3, 3, dtype=torch.int32), None, "int8"), TypeError, "weight"),
    "pack a vector": (lambda: linear.pack(torch.randn(3), None, "int8"), ValueError, "weight"),
    "pack nothing": (lambda: linear.pack(torch.randn(0, 3), None, "int8"), ValueError, "weight"),
    "pack bias length": (lambda: linear.pack(torch.randn(3, 3), torch.randn(4), "int8"), ValueError, "bias"),
    "pack format": (lambda: linear.pack(torch.randn(3, 3), None, "int3"), ValueError, "format"),
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
    "norm width": (lambda: rowwise.rms_norm(X, torch.ones(63), 1e-6), ValueError, "x"),
    "norm rank": (lambda: rowwise.rms_norm(X, torch.ones(1, 64), 1e-6), ValueError, "weight"),
    "rope rank": (lambda: rowwise.rope(X, X, X), ValueError, "x"),
    "rope tables": (lambda: rowwise.rope(query(), torch.ones(2, 1, 32), torch.ones(2, 1, 16)), ValueError, "sin"),
    "rope tokens": (lambda: rowwise.rope(query(), torch.ones(2, 3, 32), torch.ones(2, 3, 32)), ValueError, "cos"),
    "rope odd": (lambda: rowwise.rope(query(), torch.ones(2, 1, 7), torch.ones(2, 1, 7)), ValueError, "cos"),
    "rope too wide": (lambda: rowwise.rope(query(), torch.ones(2, 1, 34), torch.ones(2, 1, 34)), ValueError, "cos"),
    "gate shapes": (lambda: rowwise.gated(X, X[:1], "silu"), ValueError, "up"),
    "gate name": (lambda: rowwise.gated(X, X, "relu"), ValueError, "activation"),
    "head size": (lambda: attention.layer_bytes(2, 20, "int8"), ValueError, "head size.*16.*got 20"),
    "head size of a query": (lambda: attend(kv(), query(2, 1, 4, 20)), ValueError, "head size"),
    "head size too large": (lambda: attention.layer_bytes(1, 272, "f32"), ValueError, "head size"),
    "pages dtype": (lambda: attend(kv(pages=kv().pages.char())), TypeError, "pages"),
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
    "mask dtype": (lambda: attend(kv(), mask=torch.zeros(2, 1, 1, 1)), TypeError, "mask"),
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
        lambda: attention.slim_attention(query(2, 9, 4, 32), *[torch.randn(2, 8, 2, 32)] * 2, None, 0.2),
        ValueError,
        "key",
    ),
    "mlp hidden rank": (lambda: mlp(hidden=X), ValueError, "hidden"),
    "mlp depth": (lambda: mlp(hidden=torch.randn(1, 3, 60), norm=torch.ones(60)), ValueError, "gate_up"),
    "mlp outputs": (lambda: mlp(gate_up=[PACKED]), ValueError, "gate_up"),
    "mlp mixed formats": (
        lambda: mlp(gate_up=[linear.pack(torch.randn(48, 64), None, f) for f in ("int8", "bf16")]),
        ValueError,
        "gate_up",
    ),
    "mlp down": (lambda: mlp(down=linear.pack(torch.randn(60, 48), None, "int8")), ValueError, "down"),
    "mlp norm": (lambda: mlp(norm=torch.ones(63)), ValueError, "input_norm"),
    "mlp activation": (lambda: mlp(activation="tanh"), ValueError, "activation"),
}


@pytest.mark.parametrize("case", CASES)
def test_misuse_is_named(case):
    call, error, words = CASES[case]
    with pytest.raises(error, match=words):
        call()


def test_other_devices_are_refused():
    with pytest.raises((NotImplementedError, RuntimeError, ValueError)):
        linear.linear(X.to("meta"), PACKED)


def test_a_refused_append_writes_nothing():
    pages = kv(past_B=torch.tensor([0, 60], dtype=torch.int32))
    before = pages.pages.clone()
    with pytest.raises(ValueError, match="page_table"):
        attention.kv_append(pages, *[torch.randn(2, 5, 2, 32)] * 2)
    assert torch.equal(pages.pages, before)
