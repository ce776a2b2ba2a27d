"""What the two ranks of bench_scaling.py do: by turns, rank 0 decodes alone, and both decode together.

    torch-cpullm launch --sockets 2 -m bench.scaling_ranks llama-3.2-1b int8 11

Rank 0 has the whole model and its part of another copy; the other rank sleeps while rank 0 is alone. Rank 0 writes one
line of JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch leaves it out of __all__

import torch_cpullm
from bench.bench_host import FEW, MANY, head_us, tiny, token_us
from bench.inside_layers import sums_us
from torch_cpullm.benchmark.engines.hugging_face import Clock
from torch_cpullm.benchmark.shapes import config_of, fill, meta_model
from torch_cpullm.config import Weights
from torch_cpullm.machine.probe import cold_read
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.ops.comm import all_gather, barrier, broadcast_
from torch_cpullm.ops.linear import linear

CONTEXT, TOKENS, UNCOUNTED = 128, 24, 3
"""The first steps of a generate() are watched, and find the caches of the prompt."""
PASSES, PASS_BYTES = 7, 128 << 20
WIDTHS, SUM_LAPS = (2048, 4096, 8192), 15
EXCHANGES, HOST_LAPS, HOST_TOKENS = 50, 5, 64


def optimised(shape: str, weights: str) -> Any:
    """Random weights, optimised: the whole before init(), this rank's part after it."""
    kv_cache = "bf16" if weights == "bf16" else "int8"
    model: Any = torch_cpullm.optimize(
        fill(meta_model(config_of(shape))), weights=cast("Weights", weights), kv_cache=kv_cache
    )
    model.generation_config.eos_token_id = None
    return model


def packed_of(model: Any) -> list[tuple[torch.Tensor, int]]:
    """The packed weights, each with its number of inputs."""
    return [(m.packed, m.in_features) for m in model.modules() if isinstance(m, PackedLinear)]


def bytes_of(model: Any) -> int:
    """Bytes that a token reads: packed weights, and what the cache keeps of CONTEXT tokens and half of the new ones."""
    kv_bytes = torch_cpullm.explain(model).kv_bytes_per_token * (CONTEXT + TOKENS // 2)
    return sum(packed.numel() for packed, _ in packed_of(model)) + round(kv_bytes)


def token_s(model: Any) -> float:
    """Median seconds from token to token behind a prompt of CONTEXT; 0 on ranks that no streamer speaks on."""
    clock = Clock()
    ids_BT = torch.arange(100, 100 + CONTEXT)[None]
    model.generate(ids_BT, max_new_tokens=TOKENS, do_sample=False, streamer=clock)
    steps = [b - a for a, b in itertools.pairwise(clock.times[1 + UNCOUNTED :])]
    return statistics.median(steps) if steps else 0.0


def linears_s(model: Any) -> float:
    """Seconds of all linear layers, called one after the other with one row."""
    packed = [(weight, torch.randn(1, inputs, dtype=torch.bfloat16)) for weight, inputs in packed_of(model)]
    start = time.perf_counter()
    for weight, row_1K in packed:
        linear(row_1K, weight)
    return time.perf_counter() - start


def bandwidth() -> float:
    """Median bytes per second of passes over memory that no cache holds, by one thread."""
    return statistics.median(cold_read(1, PASS_BYTES) for _ in range(PASSES))


def exchange_s(group: int) -> float:
    """Seconds of what a token is settled by: candidates, the chosen one, whether to stop."""
    pair_B2, token_B, done_B = torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, dtype=torch.long), torch.zeros(1)
    barrier(group)
    spent = []
    for _ in range(EXCHANGES):
        start = time.perf_counter()
        all_gather(pair_B2, group)
        broadcast_(token_B, 0, group)
        broadcast_(done_B, 0, group)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def host_s() -> dict[str, float]:
    """Seconds for each layer and each token, as bench_host finds them."""
    few, many = (torch_cpullm.optimize(tiny(layers)) for layers in (FEW, MANY))
    layers, tokens = [], []
    for _ in range(HOST_LAPS):
        small, large, head = token_us(few, HOST_TOKENS), token_us(many, HOST_TOKENS), head_us(few)
        layers.append((large - small) / (MANY - FEW))
        tokens.append(small - FEW * layers[-1] - head)
    return {"layer_s": 1e-6 * statistics.median(layers), "token_s": 1e-6 * statistics.median(tokens)}


class Alone:
    """Lets rank 0 work while the others sleep, instead of waiting with their CPUs as collectives do."""

    def __init__(self, rank: int) -> None:
        self._rank, self._turn = rank, itertools.count()
        self._store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)

    def __call__(self, work: Callable[[], Any]) -> Any:
        """What `work` gives, on rank 0; None on the others, when it is done."""
        key = f"alone/{next(self._turn)}"
        if self._rank:
            self._store.wait([key], timedelta(hours=1))
            return None
        found = work()
        self._store.set(key, "done")
        return found


def main(shape: str, weights: str, laps: int) -> None:
    """Measure by turns; rank 0 prints."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    alone = Alone(rank)
    whole = optimised(shape, weights) if rank == 0 else None
    host = alone(host_s)
    world = torch_cpullm.distributed.init(600.0)
    part = optimised(shape, weights)
    hidden = part.config.hidden_size
    found: list[dict[str, float]] = []
    for lap in range(laps + 1):
        before = alone(lambda: (bandwidth(), linears_s(whole), token_s(whole), bandwidth()))
        barrier(world.group)
        own = bandwidth()
        sums = [1e-6 / 2 * each for each in sums_us(1, hidden, torch.bfloat16, world.group, 3)]
        exchange = exchange_s(world.group)
        together = token_s(part)
        barrier(world.group)
        own = (own + bandwidth()) / 2
        slowest = float(all_gather(torch.tensor(own), world.group).min())
        if lap and before:
            packed = sum(weight.numel() for weight, _ in packed_of(whole))
            read = (before[0] + before[3]) / 2
            found.append(
                {
                    "bandwidth alone": read,
                    "bandwidth of each": slowest,
                    "share": packed / before[1] / read,
                    "sum_s": statistics.median(sums),
                    "exchange_s": exchange,
                    "token_s of 1": before[2],
                    "token_s of 2": together,
                }
            )
    layers_us = {str(width): sums_us(1, width, torch.bfloat16, world.group, SUM_LAPS) for width in WIDTHS}
    if rank == 0:
        bytes_by_ranks = {"1": bytes_of(whole), "2": bytes_of(part)}
        each_us = {width: [us / 2 for us in laps_us] for width, laps_us in layers_us.items()}
        print(json.dumps({"bytes": bytes_by_ranks, "host": host, "sums_us": each_us, "laps": found}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
