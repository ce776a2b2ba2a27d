"""What a token costs besides its arithmetic: models that compute next to nothing, with few layers and with many.

    python -m bench.bench_host                 one thread, 2 and 34 layers, 128k words (2 minutes)

The slope over layers is what a layer costs, the rest what stands outside of them; the head, which multiplies 8 million
weights, is timed alone and taken off. Layers are 64 wide, so some microseconds of arithmetic are in the slope. Greedy,
by turns, medians of tokens and then of laps. Writes bench/results/host-LEVEL.json.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import torch_cpullm
from bench.header import header
from torch_cpullm.benchmark.engines.hugging_face import Clock
from torch_cpullm.benchmark.steps import step
from torch_cpullm.ops.introspect import isa_level

ROOT = Path(__file__).parent.parent
WIDTH, WORDS, PROMPT = 64, 128_256, 16
FEW, MANY = 2, 34
HEAD_CALLS = 100


@dataclass(frozen=True)
class Overhead:
    """Microseconds a token, of each lap.

    Attributes:
        layer_us: for each layer.
        outside_us: all the rest but the head's product.
        head_us: that product.
    """

    layer_us: list[float]
    outside_us: list[float]
    head_us: list[float]


def tiny(layers: int) -> Any:
    """A Llama of `layers` layers that are next to nothing, in bf16."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=WIDTH // 2,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    return model


def token_us(model: Any, tokens: int) -> float:
    """Microseconds from token to token of one generate()."""
    clock = Clock()
    ids_BT = torch.arange(10, 10 + PROMPT)[None]
    model.generate(ids_BT, max_new_tokens=tokens, min_new_tokens=None, do_sample=False, streamer=clock)
    return 1e6 * statistics.median(b - a for a, b in itertools.pairwise(clock.times[3:]))


def head_us(model: Any) -> float:
    """Microseconds of the head's call."""
    x_B1D = torch.randn(1, 1, WIDTH, dtype=torch.bfloat16)
    spent = []
    with torch.inference_mode():
        for _ in range(HEAD_CALLS):
            start = time.perf_counter()
            model.lm_head(x_B1D)
            spent.append(time.perf_counter() - start)
    return 1e6 * statistics.median(spent)


def measure(console: Console, laps: int, tokens: int) -> dict[str, Overhead]:
    """Stock and ours, by turns."""
    models = {
        "transformers bf16": (tiny(FEW), tiny(MANY)),
        "torch_cpullm int8": (torch_cpullm.optimize(tiny(FEW)), torch_cpullm.optimize(tiny(MANY))),
    }
    found = {name: Overhead([], [], []) for name in models}
    with step(console, "measuring") as advance:
        for lap, name in itertools.product(range(laps), models):
            few, many = models[name]
            small, large, head = token_us(few, tokens), token_us(many, tokens), head_us(few)
            layer = (large - small) / (MANY - FEW)
            found[name].layer_us.append(layer)
            found[name].outside_us.append(small - FEW * layer - head)
            found[name].head_us.append(head)
            advance(lap * len(models) + list(models).index(name) + 1, laps * len(models))
    return found


def main(
    laps: Annotated[int, typer.Option(min=1, help="of each")] = 7,
    tokens: Annotated[int, typer.Option(min=8, help="of each generate()")] = 96,
    threads: Annotated[int, typer.Option(min=1, help="to compute with")] = 1,
    output: Annotated[Path | None, typer.Option(help="default: bench/results/host-LEVEL.json")] = None,
) -> None:
    """Measure, print a table, write the laps."""
    torch.set_num_threads(threads)
    console = Console(width=100)
    found = measure(console, laps, tokens)
    table = Table("", "a layer", "outside the layers", "the head", title="microseconds a token")
    for name, overhead in found.items():
        table.add_row(name, *(f"{statistics.median(values):.1f}" for values in asdict(overhead).values()))
    console.print(table)
    target = output or ROOT / "bench" / "results" / f"host-{isa_level()}.json"
    result = header() | {"threads": threads} | {name: asdict(overhead) for name, overhead in found.items()}
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
