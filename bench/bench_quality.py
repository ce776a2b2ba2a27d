"""What each weight format costs on the bundled model's held-out text: perplexity, and KL divergence from float32.

    python -m bench.bench_quality            every format, plain and with planted outliers (about 10 minutes)
    python -m bench.bench_quality --windows 32

Each format is applied to the bf16 model, as a user would; attention and cache stay the model's own, so that only linear
layers and embeddings differ. Calibration texts come from the training side of the split. Writes
bench/results/quality.json.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import linear

import torch_cpullm
from bench.judge import Judge
from torch_cpullm.benchmark.steps import step
from torch_cpullm.demo.bundled import encode as encode_text
from torch_cpullm.demo.bundled import held_out_text, load_bundled
from torch_cpullm.demo.corpus import excerpt, read_stdlib
from torch_cpullm.demo.quality import windows_of
from torch_cpullm.testing.outliers import plant_outliers

ROOT = Path(__file__).parent.parent
CALIBRATION_BYTES = 400_000  # cut down to 32 windows of 512 tokens
INT4: dict[str, Any] = {"weights": "int4"}
FORMATS: dict[str, dict[str, Any]] = {
    "bf16": {"weights": "bf16"},
    "INT8 (default)": {},
    "INT8 g128": {"group_size": 128},
    "INT8 g64": {"group_size": 64},
    "INT8 g32": {"group_size": 32},
    "INT8, W8A16": {"activations": "bf16"},
    "INT8, calibrated": {"calibration": True},
    "INT4 g32 (default)": INT4,
    "INT4 g64": {**INT4, "group_size": 64},
    "INT4 g128": {**INT4, "group_size": 128},
    "INT4 g32 asymmetric": {**INT4, "symmetric": False},
    "INT4 g32, W4A16": {**INT4, "activations": "bf16"},
    "INT4 g32, calibrated": {**INT4, "calibration": True},
    "INT4 g64, calibrated": {**INT4, "group_size": 64, "calibration": True},
    "INT4 g128, calibrated": {**INT4, "group_size": 128, "calibration": True},
    "INT4 g32 asymmetric, calibrated": {**INT4, "symmetric": False, "calibration": True},
}


class PerTensor(nn.Linear):
    """The naive scheme as a comparison: one scale for all of x, one for all of the weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Input [..., K] -> [..., N], both operands rounded to 8 bits."""

        def rounded(x: torch.Tensor) -> torch.Tensor:
            scale = x.float().abs().max() / 127
            return ((x.float() / scale).round() * scale).to(x.dtype)

        return linear(rounded(input), rounded(self.weight), self.bias)


def per_tensor(model: Any) -> Any:
    """Swap the linear layers of `model` for PerTensor, in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = PerTensor
    return model


def main(
    windows: Annotated[int, typer.Option(help="held-out windows of 512 tokens; 0: all of them")] = 0,
    only: Annotated[str, typer.Option(help="formats whose name holds this")] = "",
) -> None:
    """Score every format on the plain model and on a copy with planted outliers; print one table."""
    console = Console(width=120)
    model, tokenizer = load_bundled()
    windows_NT = windows_of(encode_text(tokenizer, held_out_text()), limit=windows or None)
    texts = [excerpt(read_stdlib().train[::7], CALIBRATION_BYTES)]
    chosen = {name: choices for name, choices in FORMATS.items() if only in name or name == "bf16"}
    with step(console, "float32, the truth") as advance:
        judge = Judge(copy.deepcopy(model).float(), windows_NT)
    planted = plant_outliers(copy.deepcopy(model).float()).to(torch.bfloat16)
    results: list[dict[str, Any]] = []
    with step(console, "formats") as advance:
        for kind, source in (("plain", model), ("planted outliers", planted)):
            results.append(_row(kind, "INT8 per tensor (naive)", judge.score(per_tensor(copy.deepcopy(source)))))
            for name, choices in chosen.items():
                values = {**choices, **({"calibration": texts} if "calibration" in choices else {})}
                copied = torch_cpullm.optimize(copy.deepcopy(source), attention="keep", tokenizer=tokenizer, **values)
                told = torch_cpullm.explain(copied)
                results.append(
                    _row(kind, name, judge.score(copied), told.weight_bytes_after / told.weight_bytes_before)
                )
                advance(len(results), 2 * (len(chosen) + 1))
    base = {row["kind"]: row["perplexity"] for row in results if row["format"] == "bf16"}
    table = Table(title=f"bundled model, {windows_NT.numel() - len(windows_NT):,} held-out tokens")
    for heading in ("model", "weights", "bytes", "perplexity", "to bf16", "KL to fp32"):
        table.add_column(heading, justify="left" if heading in ("model", "weights") else "right")
    for row in results:
        row["to_bf16"] = row["perplexity"] / base[row["kind"]] - 1.0
        size = f"{row['bytes']:.0%}" if row["bytes"] else ""
        table.add_row(
            row["kind"], row["format"], size, f"{row['perplexity']:.3f}", f"{row['to_bf16']:+.2%}", f"{row['kl']:.5f}"
        )
    console.print(table)
    file = ROOT / "bench" / "results" / "quality.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {file.relative_to(ROOT)}")


def _row(kind: str, name: str, score: tuple[float, float], share: float = 0.0) -> dict[str, Any]:
    return {"kind": kind, "format": name, "perplexity": score[0], "kl": score[1], "bytes": share}


if __name__ == "__main__":
    typer.run(main)
