"""The bundled model's card: what it was trained on, how, and how well, with the loss curve as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch_cpullm.demo.corpus import HELD_OUT_PACKAGES, Corpus


def _plot(path: Path, curve: list[dict[str, float]], trigram: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    steps = [point["step"] for point in curve]
    axes.plot(steps, [point["train"] for point in curve], label="training", color="#9ab")
    axes.plot(steps, [point["validation"] for point in curve], label="held-out packages", color="#c40")
    axes.axhline(trigram, linestyle="--", color="#555", label="Kneser-Ney trigram, held-out")
    axes.set(xlabel="optimizer step", ylabel="loss, nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_card(
    out: Path, corpus: Corpus, recipe: dict[str, Any], report: dict[str, float], curve: list[dict[str, float]]
) -> None:
    """Write README.md and loss.png beside the weights in `out`."""
    _plot(out / "loss.png", curve, report["trigram"])
    rows = "\n".join(f"| {name} | {value} |" for name, value in recipe.items())
    (out / "README.md").write_text(
        f"""---
license: psf-2.0
language: [en, code]
library_name: transformers
---
# The model torch_cpullm measures itself on

A small Llama trained from nothing by `python -m torch_cpullm.demo.train`. It completes Python in the manner of the
standard library; it is a measuring instrument for quantisation and kernels, not an assistant.

## Corpus
{corpus.source}, the `.py` files (PSF licence), sha256 `{corpus.digest}`; generated tables and vendored wheels left out.
Held out whole, with their tests: {", ".join(f"`{name}`" for name in HELD_OUT_PACKAGES)}.
{report["train_tokens"]:,.0f} training tokens, {report["held_out_tokens"]:,.0f} held-out tokens.
`held_out.txt` is an excerpt of every held-out file, used by the tests and by `make demo`.

## Result
| | nats per token on the held-out packages | perplexity |
|---|---|---|
| this model | {report["validation"]:.3f} | {math.exp(report["validation"]):.1f} |
| Kneser-Ney trigram, same tokens, same split | {report["trigram"]:.3f} | {math.exp(report["trigram"]):.1f} |

![loss curve](loss.png)

## Recipe
| | |
|---|---|
{rows}
""",
        encoding="utf-8",
    )
