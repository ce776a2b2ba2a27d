"""Layers whose attention and MLP read the same hidden: against their definition, and themselves cut otherwise."""

import pytest
import torch

from torch_cpullm.ops import block
from torch_cpullm.ops.attention import KvPages, kv_append, paged_attention
from torch_cpullm.ops.comm import close_group, group_info, shm_create
from torch_cpullm.ops.layers import KvLayers, LayerNumbers, LayerStack, LayerWeights, decoder_layers, stack_layers
from torch_cpullm.ops.linear import linear, pack
from torch_cpullm.ops.rowwise import gated, layer_norm, rope
from torch_cpullm.testing.formats import EACH_KERNEL, FORMATS
from torch_cpullm.testing.pages import empty_pages

D, F, H, G, C = 96, 160, 6, 2, 32
NORM = block.NormNumbers(1e-5, 0.0, centred=True)
ROTARY = 24


def dense_layer(*, gate=True, groups=False):
    """Rows of a layer's weights and their biases, by name."""
    shapes = {"qkv": ((H + 2 * G) * C, D), "o": (D, H * C), "up": (F * (1 + gate), D), "down": (D, F)}
    dense = {name: (torch.randn(shape) / 8, torch.randn(shape[0]) / 8) for name, shape in shapes.items()}
    dense["attention norm"], dense["mlp norm"] = ((torch.rand(D) + 0.5, torch.randn(D) / 4) for _ in range(2))
    return dense


def packed_layer(dense, format, qkv_order=None):
    form = FORMATS[format]
    packed = {name: pack(*dense[name], form) for name in ("o", "up", "down")}
    weight, bias = dense["qkv"]
    order = torch.arange(len(bias)) if qkv_order is None else qkv_order
    attention = block.AttentionWeights(
        [pack(weight[order], bias[order], form)], packed["o"], dense["attention norm"][0], None, None, None,
        dense["attention norm"][1],
    )  # fmt: skip
    mlp = block.MlpWeights([packed["up"]], packed["down"], dense["mlp norm"][0], None, dense["mlp norm"][1])
    return LayerWeights(attention, mlp)


def numbers_of(activation="gelu_tanh", *, groups=False, pairs=False, rank_group=(0, 0)):
    attention = block.AttentionNumbers(H, G, C**-0.5, 0.0, rank_group[0], groups, pairs)
    return LayerNumbers(attention, NORM, activation, rank_group[1], parallel=True)


def rope_tables(tokens, start=0):
    angles = (torch.arange(tokens) + start)[None, :, None] * torch.logspace(0, -3, ROTARY // 2).repeat(2)
    return angles.cos(), angles.sin()


def kv_format_for(format):
    return format if format in ("f32", "bf16") else "int8"


def run(hidden, layers, numbers, format="f32", pages=None):
    tokens = hidden.shape[1]
    pages = pages or [empty_pages(len(hidden), tokens, G, C, kv_format_for(format)) for _ in layers]
    kv = KvLayers([each.pages for each in pages], *pages[0][1:])
    start = int(kv.past_B[0]) if len(kv.past_B) else 0
    tables = tuple(table.to(hidden.dtype) for table in rope_tables(tokens, start))
    return decoder_layers(hidden, stack_layers(layers, numbers), tables, kv, None)


def by_parts(hidden, weights, activation, pages, *, pairs=False):
    """The layer as its definition reads, each step an op of its own; float32."""
    attention, mlp = weights.attention, weights.mlp
    batch, tokens, _ = hidden.shape
    tables = rope_tables(tokens)
    rows = layer_norm(hidden, attention.input_norm_D, attention.input_norm_bias_D, NORM.eps)
    heads = linear(rows, attention.qkv[0]).view(batch, tokens, -1, C)
    q, k, v = heads.split([H, G, G], dim=2)
    kv_append(pages, rope(k, *tables, pairs=pairs), v)
    attended = paged_attention(rope(q, *tables, pairs=pairs), pages, C**-0.5)
    rows = layer_norm(hidden, mlp.input_norm_D, mlp.input_norm_bias_D, NORM.eps)
    inner = linear(rows, mlp.gate_up[0])
    gate, up = inner.chunk(2, -1) if inner.shape[-1] == 2 * F else (inner, None)
    inner = gated(gate.contiguous(), None if up is None else up.contiguous(), activation)
    return linear(attended.flatten(2), attention.output) + (linear(inner, mlp.down) + hidden)


@pytest.mark.parametrize("format", EACH_KERNEL)
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
def test_is_its_parts_bit_for_bit(format, gate, pairs):
    weights = packed_layer(dense_layer(gate=gate), format)
    for rows, activation in ((1, "gelu_erf"), (7, "relu"), (600, "silu")):
        hidden, pages = torch.randn(1, rows, D), empty_pages(1, rows, G, C, kv_format_for(format))
        expected = by_parts(hidden, weights, activation, pages, pairs=pairs)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(run(hidden, [weights], numbers_of(activation, pairs=pairs), format), expected)


def test_against_plain_torch():
    """The sum of both halves, each of which reads hidden."""
    dense, hidden = dense_layer(), torch.randn(2, 9, D)
    functional = torch.nn.functional
    q, k, v = functional.linear(
        functional.layer_norm(hidden, (D,), *dense["attention norm"], NORM.eps), *dense["qkv"]
    ).split([H * C, G * C, G * C], dim=-1)  # fmt: skip
    tables = rope_tables(9)
    q, k, v = (x.view(2, 9, -1, C) for x in (q, k, v))
    q, k = rope(q, *tables), rope(k, *tables)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    attention = functional.linear(attended.transpose(1, 2).flatten(2), *dense["o"])
    gate, up = functional.linear(
        functional.layer_norm(hidden, (D,), *dense["mlp norm"], NORM.eps), *dense["up"]
    ).chunk(2, -1)  # fmt: skip
    mlp = functional.linear(functional.gelu(gate, approximate="tanh") * up, *dense["down"])
    torch.testing.assert_close(run(hidden, [packed_layer(dense, "f32")], numbers_of()), hidden + attention + mlp)


@pytest.mark.parametrize("format", EACH_KERNEL)
def test_heads_in_groups_are_heads_in_order(format):
    """The same rows in another order give the same bits, and the same pages."""
    dense, hidden = dense_layer(), torch.randn(2, 5, D)
    heads = torch.arange((H + 2 * G) * C).view(-1, C)
    q, k, v = heads[:H].view(G, H // G, C), heads[H : H + G, None], heads[H + G :, None]
    groups = torch.cat([q, k, v], dim=1).flatten()
    one, other = (empty_pages(2, 5, G, C, "int8") for _ in range(2))
    expected = run(hidden, [packed_layer(dense, format)], numbers_of(), format, [one])
    got = run(hidden, [packed_layer(dense, format, groups)], numbers_of(groups=True), format, [other])
    assert torch.equal(got, expected)
    assert torch.equal(one.pages, other.pages)


@pytest.mark.parametrize("format", ["f32", "int8"])
def test_token_by_token_gives_the_bits_of_one_call(format):
    layers, hidden = [packed_layer(dense_layer(), format) for _ in range(2)], torch.randn(2, 70, D)
    whole = run(hidden, layers, numbers_of(), format)
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        pages = [empty_pages(2, 70, G, C, kv_format_for(format)) for _ in layers]
        start = 0
        for stop in (1, 2, 34, 35, 70):
            past = torch.full((2,), start, dtype=torch.int32)
            step = [KvPages(each.pages, each.table_BP, past, G, each.format) for each in pages]
            assert torch.equal(run(hidden[:, start:stop], layers, numbers_of(), format, step), whole[:, start:stop])
            start = stop


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_layers_at_once_are_layers_in_turn(dtype, count):
    """And each is rounded once: its bits are those of the same floats."""
    layers, hidden = [packed_layer(dense_layer(), "int8") for _ in range(count)], torch.randn(2, 5, D).to(dtype)
    expected = hidden
    for weights in layers:
        wide = run(expected.float(), [weights], numbers_of(), "int8") if dtype == torch.float32 else None
        expected = run(expected, [weights], numbers_of(), "int8")
        assert wide is None or torch.equal(expected, wide)
    got = run(hidden, layers, numbers_of(), "int8")
    assert got.dtype == dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_layer_is_rounded_once(dtype):
    weights, hidden = packed_layer(dense_layer(), "int8"), torch.randn(2, 5, D).to(dtype)
    pages = [empty_pages(2, 5, G, C, "int8") for _ in range(2)]
    tables = tuple(table.to(dtype) for table in rope_tables(5))
    one, other = (
        decoder_layers(
            x,
            stack_layers([weights], numbers_of()),
            tuple(table.to(x.dtype) for table in tables),
            KvLayers([kv.pages], *kv[1:]),
            None,
        )
        for x, kv in ((hidden, pages[0]), (hidden.float(), pages[1]))
    )
    assert torch.equal(one, other.to(dtype))


@pytest.mark.parametrize("parallel", [True, False])
def test_a_layer_that_does_not_rotate(parallel):
    layers, hidden = [packed_layer(dense_layer(), "f32") for _ in range(3)], torch.randn(2, 5, D)
    layers[1] = layers[1]._replace(rotates=False)
    numbers = numbers_of()
    numbers = LayerNumbers(numbers.attention, NORM, numbers.activation, parallel=parallel)
    pages = [empty_pages(2, 5, G, C, "f32") for _ in layers]
    stack, tables = stack_layers(layers, numbers), rope_tables(5)
    assert stack.unrotated == (1,)
    got = decoder_layers(hidden, stack, tables, KvLayers([kv.pages for kv in pages], *pages[0][1:]), None)
    for weights, kv in zip(layers, pages, strict=True):
        own = tables if weights.rotates else tuple(table[..., :0] for table in tables)
        one = LayerStack(stack_layers([weights], numbers).lists, numbers)
        hidden = decoder_layers(hidden, one, own, KvLayers([kv.pages], *kv[1:]), None)
    assert torch.equal(got, hidden)


@pytest.mark.parametrize("shared", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ranks_take_one_collective_a_layer(shared, dtype):
    """With one rank, whose sum is its own part: rounded before it goes on its way."""
    layers, hidden = [packed_layer(dense_layer(), "f32") for _ in range(3)], torch.randn(2, 5, D).to(dtype)
    expected = run(hidden, layers, numbers_of()).float()
    group, _ = shm_create(1, 60.0)
    got = run(hidden, layers, numbers_of(rank_group=tuple(group * each for each in shared))).float()
    assert group_info(group).collectives == len(layers)
    close_group(group)
    assert (got - expected).norm() <= 3 * len(layers) * torch.finfo(dtype).eps * expected.norm()
