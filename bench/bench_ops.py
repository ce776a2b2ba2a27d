"""The operators one by one, against what stock torch offers for the same job: `make bench`.

Linear layers at two sizes of 1B to 7B models, for 1 row (decode: bytes per second count) and 512 rows (prefill:
operations per second count); attention at the shape of Llama-3.2-1B. Rivals that leave out part of the job say so.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import scaled_dot_product_attention

from bench.contest import Call, Work, copies_beyond_cache, hold, rotated
from torch_cpullm.formats import BF16, INT8, KvFormat
from torch_cpullm.ops import attention, linear

pytestmark = pytest.mark.bench

SIZES_KN = [(2048, 8192), (4096, 4096)]  # the up projection of Llama-3.2-1B, the query projection of Llama-2-7B
ROWS = [1, 512]
HEADS, KV_HEADS, CHANNELS = 32, 8, 64  # Llama-3.2-1B
BYTES = {"int8": 1, "bf16": 2}


def _matrix(rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.empty(rows, columns).normal_(0.0, 0.02, generator=generator).to(torch.bfloat16)


def _stock_linears(x_MK: torch.Tensor, weight_NK: torch.Tensor, weights: str) -> dict[str, Call]:
    """What torch itself would run: bf16 always, and for INT8 its own INT8 operators."""
    rivals = {"F.linear bf16": rotated(lambda w: torch_linear(x_MK, w), copies_beyond_cache(weight_NK))}
    if weights != "int8":
        return rivals
    scale_N = weight_NK.abs().amax(dim=1).div(127)
    codes = copies_beyond_cache((weight_NK / scale_N[:, None]).round().to(torch.int8))
    if len(x_MK) == 1:
        rivals["_weight_int8pack_mm"] = rotated(lambda w: torch.ops.aten._weight_int8pack_mm(x_MK, w, scale_N), codes)
    else:
        x_i8_MK = (x_MK / x_MK.abs().amax().div(127)).round().to(torch.int8)
        rivals["_int_mm (no scales)"] = rotated(lambda w: torch.ops.aten._int_mm(x_i8_MK, w.t()), codes)
    return rivals


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size_KN", SIZES_KN, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("weights", BYTES)
def test_linear(benchmark: Any, weights: str, size_KN: tuple[int, int], rows: int) -> None:
    inputs, outputs = size_KN
    weight_NK, x_MK = _matrix(outputs, inputs), 50 * _matrix(rows, inputs)
    packed = copies_beyond_cache(linear.pack(weight_NK, None, {"int8": INT8, "bf16": BF16}[weights]))
    ours = rotated(lambda w: linear.linear(x_MK, w), packed)
    work = (
        Work(bytes_read=inputs * outputs * BYTES[weights])
        if rows == 1
        else Work(operations=2 * rows * inputs * outputs)
    )
    hold(benchmark, ours, _stock_linears(x_MK, weight_NK, weights), work)


def _pool(length: int, tokens: int, kv_format: KvFormat) -> attention.KvPages:
    """One layer's pages that hold `length` tokens, seen by a call with `tokens` new ones."""
    pages = -(-length // attention.PAGE_TOKENS)
    kv = attention.KvPages(
        pages=torch.zeros(pages, attention.layer_bytes(KV_HEADS, CHANNELS, kv_format), dtype=torch.uint8),
        table_BP=torch.arange(pages, dtype=torch.int32)[None],
        past_B=torch.zeros(1, dtype=torch.int32),
        kv_heads=KV_HEADS,
        format=kv_format,
    )
    key, value = torch.randn(2, 1, length, KV_HEADS, CHANNELS, dtype=torch.bfloat16).unbind()
    attention.kv_append(kv, key, value)
    return dataclasses.replace(kv, past_B=torch.tensor([length - tokens], dtype=torch.int32))


def _attention_contest(benchmark: Any, length: int, tokens: int, kv_format: KvFormat, work: Work) -> None:
    """Ours over a paged pool against scaled_dot_product_attention over dense bf16 keys and values."""
    torch.manual_seed(0)
    query_BTHC = torch.randn(1, tokens, HEADS, CHANNELS, dtype=torch.bfloat16)
    pool = _pool(length, tokens, kv_format)
    pools = [dataclasses.replace(pool, pages=pages) for pages in copies_beyond_cache(pool.pages)]
    ours = rotated(lambda kv: attention.paged_attention(query_BTHC, kv, CHANNELS**-0.5), pools)
    query_BHTC = query_BTHC.transpose(1, 2).contiguous()
    caches = copies_beyond_cache(torch.randn(2, 1, KV_HEADS, length, CHANNELS, dtype=torch.bfloat16))
    stock = rotated(
        lambda kv: scaled_dot_product_attention(query_BHTC, *kv, is_causal=tokens > 1, enable_gqa=True), caches
    )
    hold(benchmark, ours, {"scaled_dot_product_attention bf16": stock}, work)


@pytest.mark.parametrize("length", [512, 4096])
@pytest.mark.parametrize("kv_format", BYTES)
def test_decode_attention(benchmark: Any, kv_format: KvFormat, length: int) -> None:
    work = Work(bytes_read=2 * length * KV_HEADS * CHANNELS * BYTES[kv_format])
    _attention_contest(benchmark, length, 1, kv_format, work)


@pytest.mark.parametrize("length", [512, 2048])
@pytest.mark.parametrize("kv_format", BYTES)
def test_prefill_attention(benchmark: Any, kv_format: KvFormat, length: int) -> None:
    work = Work(operations=2 * HEADS * CHANNELS * length**2)  # two products over half a square
    _attention_contest(benchmark, length, length, kv_format, work)
