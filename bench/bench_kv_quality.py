"""What each format of the KV cache costs on the bundled model's held-out text: perplexity, and KL from float32.

    python -m bench.bench_kv_quality            plain, and with large biases of keys (about 4 minutes)
    python -m bench.bench_kv_quality --windows 16

Everything but the cache is float32, and every key and value that is attended to comes out of the cache, a token's own
as well. Writes bench/results/kv-quality.json.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import torch_cpullm
from bench.judge import Judge
from torch_cpullm.benchmark.steps import step
from torch_cpullm.demo.bundled import encode as encode_text
from torch_cpullm.demo.bundled import held_out_text, load_bundled
from torch_cpullm.demo.quality import windows_of
from torch_cpullm.testing.biases import plant_key_biases

ROOT = Path(__file__).parent.parent
FORMATS = {"float32": "keep", "bf16": "bf16", "INT8": "int8"}


def main(windows: Annotated[int, typer.Option(help="held-out windows of 512 tokens; 0: all of them")] = 0) -> None:
    """Score every format on the plain model and on copies with biased keys; print one table."""
    console = Console(width=120)
    model, tokenizer = load_bundled()
    windows_NT = windows_of(encode_text(tokenizer, held_out_text()), limit=windows or None)
    plain = model.float()
    sources = {"plain": plain}
    for kind, slow in (("biased keys, slow channels", True), ("biased keys, any channels", False)):
        sources[kind] = plant_key_biases(copy.deepcopy(plain), windows_NT[:4], slow)
    results: list[dict[str, Any]] = []
    with step(console, "formats of the cache") as advance:
        for kind, source in sources.items():
            judge = Judge(copy.deepcopy(source), windows_NT)
            for name, kv_cache in FORMATS.items():
                ours = torch_cpullm.optimize(copy.deepcopy(source), weights="keep", kv_cache=kv_cache)
                perplexity, divergence = judge.score(ours)
                results.append({"kind": kind, "format": name, "perplexity": perplexity, "kl": divergence})
                advance(len(results), len(sources) * len(FORMATS))
    base = {row["kind"]: row["perplexity"] for row in results if row["format"] == "float32"}
    table = Table(title=f"bundled model in float32, {windows_NT.numel() - len(windows_NT):,} held-out tokens")
    for heading in ("model", "KV cache", "perplexity", "to float32", "KL to float32"):
        table.add_column(heading, justify="left" if heading in ("model", "KV cache") else "right")
    for row in results:
        row["to_float32"] = row["perplexity"] / base[row["kind"]] - 1.0
        table.add_row(
            row["kind"], row["format"], f"{row['perplexity']:.3f}", f"{row['to_float32']:+.3%}", f"{row['kl']:.6f}"
        )
    console.print(table)
    file = ROOT / "bench" / "results" / "kv-quality.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {file.relative_to(ROOT)}")


if __name__ == "__main__":
    typer.run(main)
