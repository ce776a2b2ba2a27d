"""End to end: the model's own generate(), stock bf16 against optimised, at a shape with random weights.

    python -m bench.bench_generate                      Llama-3.2-1B: 512 tokens in, 64 out, 2 threads, about 5 minutes
    python -m bench.bench_generate --shape qwen2.5-0.5b --prompt 2048

Writes bench/results/generate-SHAPE-LEVEL.json, LEVEL being the instruction set, and docs/speed-LEVEL.png for the shape
that the README shows. The contenders take turns lap by lap. A probe before and after each lap says where the two vCPUs
are: laps during which they moved are left out, the others are grouped by place.
"""

from __future__ import annotations

import copy
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

import torch_cpullm
from bench.header import header
from bench.picture import draw
from bench.summary import MOVED, Group, Row, summarise
from torch_cpullm.benchmark.shapes import SEED, config_of, fill, meta_model
from torch_cpullm.benchmark.steps import step
from torch_cpullm.benchmark.timing import Lap, time_lap, warm_up
from torch_cpullm.machine.probe import Probe, probe, roofline
from torch_cpullm.ops import introspect

if TYPE_CHECKING:
    from torch_cpullm.benchmark.causal_lm import CausalLM

ROOT = Path(__file__).parent.parent
STOCK = "stock bf16"
README_SHAPE = "llama-3.2-1b"


@dataclass(frozen=True)
class ProbedLap:
    """One lap of one contender between two probes."""

    contender: str
    lap: Lap
    before: Probe
    after: Probe

    @property
    def placement(self) -> str:
        return self.before.placement if self.before.placement == self.after.placement else MOVED

    def row(self) -> Row:
        return Row(self.contender, self.placement, self.lap.prefill, self.lap.decode)

    def record(self) -> dict[str, Any]:
        probes = {"before": asdict(self.before), "after": asdict(self.after)}
        return {"contender": self.contender, "placement": self.placement, **asdict(self.lap), **probes}


def run_laps(
    models: dict[str, CausalLM], prompt_BT: torch.Tensor, new_tokens: int, repetitions: int
) -> list[ProbedLap]:
    """Time every model once in each repetition, in alternating order, with a probe before and after each lap."""
    made: list[ProbedLap] = []
    with step(Console(), "laps, by turns") as advance:
        for repetition in range(repetitions):
            order = list(models) if repetition % 2 == 0 else list(models)[::-1]
            for name in order:
                before = probe()
                lap = time_lap(models[name], prompt_BT, new_tokens)
                made.append(ProbedLap(name, lap, before, probe()))
                advance(len(made), repetitions * len(models))
    return made


def main(
    shape: Annotated[str, typer.Option(help="a name of benchmark.shapes, or a config.json")] = README_SHAPE,
    prompt: Annotated[int, typer.Option(help="tokens of prompt; decoding starts at this depth")] = 512,
    tokens: Annotated[int, typer.Option(help="new tokens in each lap")] = 64,
    repetitions: Annotated[int, typer.Option(help="laps of each contender")] = 15,
    threads: Annotated[int, typer.Option(help="threads to compute with")] = 2,
    weights: Annotated[str, typer.Option(help="int8, int4, bf16 or keep")] = "int8",
    kv_cache: Annotated[str, typer.Option(help="int8, bf16 or keep")] = "int8",
) -> None:
    """Time stock and optimised generate() by turns; write the laps as JSON and the medians as a picture."""
    torch.set_num_threads(threads)
    console = Console()
    ours = f"torch_cpullm {weights}"
    with step(console, f"random weights for {shape}") as advance:
        stock = fill(meta_model(config_of(shape)), advance=advance)
    with step(console, "optimising a copy"):
        models = {STOCK: stock, ours: torch_cpullm.optimize(copy.deepcopy(stock), weights=weights, kv_cache=kv_cache)}
    prompt_BT = torch.randint(stock.config.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(SEED))
    for model in models.values():
        warm_up(model, prompt_BT)
    laps = run_laps(models, prompt_BT, tokens, repetitions)
    groups = summarise([lap.row() for lap in laps])
    limits = roofline(threads)
    result = {
        "shape": Path(shape).name.removesuffix(".json"),
        "prompt_tokens": prompt,
        "new_tokens": tokens,
        "threads": threads,
        "weights": weights,
        "kv_cache": kv_cache,
        "isa": introspect.isa_level(),
        "versions": {name: module.__version__ for name, module in (("torch", torch), ("transformers", transformers))},
        "python": platform.python_version(),
        **header(),
        "roofline": asdict(limits),
        "summary": [asdict(group) for group in groups],
        "laps": [lap.record() for lap in laps],
    }
    file = ROOT / "bench" / "results" / f"generate-{result['shape']}-{introspect.isa_level()}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not groups:
        console.print(f"The vCPUs moved during every lap; nothing to summarise. All laps: {file.relative_to(ROOT)}")
        raise typer.Exit(1)
    if shape == README_SHAPE:
        draw(result, ROOT / "docs" / f"speed-{introspect.isa_level()}.png")
    console.print(_table(shape, groups, left_out=sum(lap.placement == MOVED for lap in laps)))
    console.print(
        f"limits now, {limits.threads} threads: {limits.read_bandwidth / 1e9:.0f} GB/s read, "
        f"{limits.f32 / 1e12:.2f} TFLOP/s f32, {limits.bf16 / 1e12:.2f} TFLOP/s bf16, "
        f"{limits.int8 / 1e12:.2f} TOP/s int8; AMX {limits.amx_bf16 / 1e12:.2f} and {limits.amx_int8 / 1e12:.2f}"
    )
    console.print(f"All laps: {file.relative_to(ROOT)}")


def _table(shape: str, groups: list[Group], left_out: int) -> Table:
    table = Table(title=f"{shape}, tokens/s, medians", caption=f"{left_out} laps left out: the vCPUs moved")
    for heading in ("vCPUs", "", "laps", "prefill", "", "decode", ""):
        table.add_column(heading, justify="left" if heading == "vCPUs" else "right")
    for group in groups:
        stock = group.medians[STOCK]
        for name, own in group.medians.items():
            prefill, decode = own.prefill / stock.prefill, own.decode / stock.decode
            speeds = (f"{own.prefill:.1f}", f"{prefill:.2f}x", f"{own.decode:.2f}", f"{decode:.2f}x")
            table.add_row(group.placement if name == STOCK else "", name, str(own.laps), *speeds)
    return table


if __name__ == "__main__":
    typer.run(main)
