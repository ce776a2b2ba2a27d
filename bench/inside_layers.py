"""What a sum over ranks costs where the blocks of a layer call it: after their products, with no Python around it.

Layers that are next to nothing, a stack of them in one operator, once with the ranks' group and once without: the
difference, by the number of layers. What ranks wait for the slowest one's products is no part of it, so its time
without the group counts. All layers have the same weights, which stay in the L2 cache.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from torch_cpullm.formats import INT8
from torch_cpullm.ops.attention import layer_bytes
from torch_cpullm.ops.block import AttentionNumbers, AttentionWeights, MlpWeights, NormNumbers
from torch_cpullm.ops.comm import all_gather, barrier
from torch_cpullm.ops.layers import KvLayers, LayerNumbers, LayerStack, LayerWeights, decoder_layers, stack_layers
from torch_cpullm.ops.linear import pack

LAYERS, CHANNELS, COLUMNS = 40, 32, 64
CALLS = 24


def _stack(hidden: int, group: int, parallel: bool) -> LayerStack:
    def weight(rows: int, inputs: int) -> torch.Tensor:
        return pack(torch.randn(rows, inputs) / inputs**0.5, None, INT8)

    gain_D = torch.ones(hidden)
    attention = AttentionWeights(
        [weight(CHANNELS, hidden) for _ in range(3)], weight(hidden, CHANNELS), gain_D, None, None, None
    )
    mlp = MlpWeights([weight(COLUMNS, hidden) for _ in range(2)], weight(hidden, COLUMNS), gain_D, None)
    heads = AttentionNumbers(1, 1, CHANNELS**-0.5, 0.0, group)
    numbers = LayerNumbers(heads, NormNumbers(1e-6, 0.0), "silu", group, parallel)
    return stack_layers([LayerWeights(attention, mlp)] * LAYERS, numbers)


def sums_us(rows: int, hidden: int, dtype: torch.dtype, group: int, laps: int, parallel: bool = False) -> list[float]:
    """Microseconds that sums of [rows, hidden] over the ranks of `group` add to a layer, of each lap.

    All ranks call it. A layer has two sums, or where its halves are `parallel` one.
    """
    together = _stack(hidden, group, parallel)
    numbers = together.numbers
    alone = replace(together, numbers=replace(numbers, attention=replace(numbers.attention, group=0), mlp_group=0))
    hidden_B1D = torch.randn(rows, 1, hidden).to(dtype)
    angles = torch.zeros(1, 1, CHANNELS)
    rope = (angles.cos().to(dtype), angles.sin().to(dtype))
    pages = [torch.zeros(rows, layer_bytes(1, CHANNELS, "int8"), dtype=torch.uint8) for _ in range(LAYERS)]
    table_BP, past_B = torch.arange(rows, dtype=torch.int32)[:, None], torch.zeros(rows, dtype=torch.int32)
    kv = KvLayers(pages, table_BP, past_B, 1, "int8")

    def median_s(stack: LayerStack) -> float:
        barrier(group)
        spent = []
        for _ in range(CALLS):
            start = time.perf_counter()
            decoder_layers(hidden_B1D, stack, rope, kv, None)
            spent.append(time.perf_counter() - start)
        return statistics.median(spent)

    seconds = torch.tensor([[median_s(together), median_s(alone)] for _ in range(laps + 1)])[1:]
    of_ranks = all_gather(seconds, group)
    slowest = of_ranks.amax(0)
    return [round(1e6 * float(lap[0] - lap[1]) / LAYERS, 2) for lap in slowest]
