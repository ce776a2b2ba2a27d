"""The model of a token's time: it counts what models have, divides what ranks divide, and adds up."""

from dataclasses import replace

import pytest

from torch_cpullm.benchmark.scaling import Costs, Decoder, Format, between_sockets, bytes_read, step_time
from torch_cpullm.benchmark.shapes import config_of, meta_model

BF16 = Format(16.0, 16.0, 16.0)
SMALL = Decoder(layers=3, hidden=10, heads=4, kv_heads=2, channels=5, ffn=20, words=100)
COSTS = Costs(bandwidth=1e6, share=0.5, reduce_s=0.25, exchange_s=1.0, layer_s=0.125, token_s=2.0)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "tinyllama-1.1b", "llama-2-70b"])
def test_weights_are_those_of_the_matrices(name: str) -> None:
    model = meta_model(config_of(name))
    decoder = Decoder.of(model.config)
    matrices = {key: parameter.numel() for key, parameter in model.named_parameters() if parameter.dim() == 2}
    in_layers = sum(count for key, count in matrices.items() if ".layers." in key)
    assert decoder.layers * decoder.layer_weights == in_layers
    assert decoder.head_weights == matrices["model.embed_tokens.weight"]


def test_ranks_divide_weights_and_heads() -> None:
    of_one, of_two = (bytes_read(SMALL, BF16, 64, ranks) for ranks in (1, 2))
    assert of_two == of_one / 2
    kv = bytes_read(SMALL, BF16, 64) - bytes_read(SMALL, BF16, 0)
    assert kv == 3 * 64 * 2 * 2 * 5 * 2
    # Four ranks on two KV heads: pairs of them read the same one.
    assert bytes_read(SMALL, BF16, 64, 4) - bytes_read(SMALL, BF16, 0, 4) == kv / 2


def test_formats_count_apart() -> None:
    weights = SMALL.layers * SMALL.layer_weights
    assert bytes_read(SMALL, Format(4.0, 8.0, 8.0), 0) == weights / 2 + SMALL.head_weights


def test_a_step_is_its_parts() -> None:
    step = step_time(SMALL, 1e6, COSTS)
    assert (step.memory_s, step.meetings_s, step.host_s) == (2.0, 3 * 2 * 0.25 + 1.0, 3 * 0.125 + 2.0)
    assert step.seconds == step.memory_s + step.meetings_s + step.host_s
    assert step_time(replace(SMALL, meetings=1), 1e6, COSTS).meetings_s == 3 * 0.25 + 1.0


def test_messages_of_more_sockets_take_longer() -> None:
    assert between_sockets(4e-6, 2, 1.0) == 4e-6
    assert between_sockets(4e-6, 8, 2.5) == pytest.approx(70e-6)
