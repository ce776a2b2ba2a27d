"""The engines that call transformers' generate(): grown, decoded from and cut back, they say what one call says."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import torch_cpullm
from torch_cpullm.benchmark.engines.hugging_face import Own, Stock
from torch_cpullm.testing.models import bundled_model

IDS = np.random.default_rng(0).integers(3, 8000, size=(3, 40))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines") / "tiny"
    bundled_model(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(params=[(Stock, "bf16"), (Own, "bf16"), (Own, "int8"), (Own, "int4")], ids=str)
def engine(request, checkpoint):
    kind, format = request.param
    threads = torch.get_num_threads()
    return kind(kind.prepare(checkpoint, format), format, threads, 3, 128)


def expected(engine, ids, tokens):
    rows = torch.from_numpy(ids)
    out = engine._model.generate(rows, attention_mask=torch.ones_like(rows), max_new_tokens=tokens, do_sample=False)
    return out[:, rows.shape[1] :].numpy()


@pytest.mark.parametrize("batch", [1, 3])
def test_in_pieces_as_in_one(engine, batch):
    ids = IDS[:batch]
    wanted = expected(engine, ids, 9)
    engine.reset(batch)
    engine.extend(ids[:, :25])
    assert engine.length == 25
    first = engine.extend(ids[:, 25:])
    times, found = engine.decode(8)
    if isinstance(engine, Own):  # a row's bits do not depend on its batch; those of stock in bf16 do
        assert np.array_equal(first, wanted[:, 0])
        assert np.array_equal(found, wanted[:, 1:])
    assert (np.column_stack([first, found]) == wanted).mean() > 0.6
    assert engine.length == 48
    assert len(times) == 8
    assert times == sorted(times)


def test_cut_back_and_again(engine):
    engine.reset(1)
    engine.extend(IDS[:1])
    wanted = expected(engine, IDS[:1, :30], 1)[:, 0]
    engine.decode(5)
    engine.crop(20)
    assert engine.length == 20
    assert np.array_equal(engine.extend(IDS[:1, 20:30]), wanted)
    engine.reset(2)
    assert engine.length == 0


def test_what_is_prepared_is_found_again(checkpoint):
    first = Own.prepare(checkpoint, "int8")
    before = {file.name: file.stat().st_mtime_ns for file in first.iterdir()}
    assert Own.prepare(checkpoint, "int8") == first
    assert {file.name: file.stat().st_mtime_ns for file in first.iterdir()} == before


def test_sizes(checkpoint):
    stock = Stock(checkpoint, "bf16", torch.get_num_threads(), 1, 64)
    own = Own(Own.prepare(checkpoint, "int4"), "int4", torch.get_num_threads(), 1, 64)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert stock.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert own.weight_bytes == torch_cpullm.explain(own._model).weight_bytes_after < stock.weight_bytes / 2
    assert (stock.kv_bits, own.kv_bits) == (16, 8)
