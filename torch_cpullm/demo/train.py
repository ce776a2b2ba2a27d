"""`python -m torch_cpullm.demo.train`: train the bundled model from nothing, on this machine's CPU.

A Llama of 12.6 M parameters learns CPython's standard library. Fixed seed; every batch is a function of (seed, step),
so a run that was stopped resumes from its last checkpoint and sees the same data as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from torch_cpullm.demo import corpus as corpora
from torch_cpullm.demo.card import write_card
from torch_cpullm.demo.ngram import trigram_loss

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
HELD_OUT_BYTES = 300_000  # of held-out text committed for the tests: a few hundred KB give a stable perplexity
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result."""

    vocabulary: int = 8192
    hidden: int = 384
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    ffn: int = 1024
    context: int = 512
    batch: int = 8
    steps: int = 1800
    warmup: int = 100
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    seed: int = 20_240_704


def train_tokenizer(texts: tuple[str, ...], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts`: no unknown token, every file round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=PAD, padding_side="left"
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: tuple[str, ...]) -> Ids:
    """Token ids of all `texts`, each file closed by the end-of-text token."""
    end = tokenizer.eos_token_id
    pieces = tokenizer.backend_tokenizer.encode_batch(list(texts))
    return np.concatenate([np.asarray([*piece.ids, end], dtype=np.int64) for piece in pieces])


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make the untrained model, initialised from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.ffn,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            max_position_embeddings=4 * recipe.context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batch_at(step: int, ids: Ids, recipe: Recipe) -> torch.Tensor:
    """The token windows `[batch, context + 1]` of one step, a function of (seed, step) alone."""
    generator = np.random.default_rng((recipe.seed, step))
    starts = generator.integers(0, len(ids) - recipe.context - 1, size=recipe.batch)
    return torch.from_numpy(np.stack([ids[start : start + recipe.context + 1] for start in starts]))


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def loss_of(model: LlamaForCausalLM, window: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss in nats of windows `[batch, context + 1]`, the products in bf16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=window[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())


@torch.no_grad()
def validate(model: LlamaForCausalLM, ids: Ids, recipe: Recipe, windows: int) -> float:
    """Mean loss over `windows` windows spread evenly over the held-out tokens."""
    starts = np.linspace(0, len(ids) - recipe.context - 2, windows).astype(int)
    model.eval()
    losses = [
        float(loss_of(model, torch.from_numpy(np.stack([ids[s : s + recipe.context + 1] for s in chunk]))))
        for chunk in np.array_split(starts, max(1, windows // recipe.batch))
    ]
    model.train()
    return sum(losses) / len(losses)


def make_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays the matrices and leaves the norm gains alone."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    gains = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def fit(model: LlamaForCausalLM, train: Ids, held_out: Ids, recipe: Recipe, work: Path) -> list[dict[str, float]]:
    """Train to the recipe's last step, resuming from `work` if a checkpoint lies there; return the loss curve."""
    checkpoint = work / "checkpoint.pt"
    optimizer = make_optimizer(model, recipe)
    first, curve = 0, list[dict[str, float]]()
    if checkpoint.exists():
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise ValueError(
                f"work: {checkpoint} was written by another recipe; delete the folder or pass another --work"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, curve = int(state["step"]), state["curve"]
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    model.train()
    with Progress(*columns) as progress:
        task = progress.add_task("train", total=recipe.steps, completed=first, loss="")
        running, began = 0.0, time.time()
        for step in range(first, recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, recipe)
            loss = loss_of(model, batch_at(step, train, recipe))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            running = loss.item() if step == first else 0.95 * running + 0.05 * loss.item()
            done = step + 1
            if done % 100 == 0 or done == recipe.steps:
                validation = validate(model, held_out, recipe, windows=64)
                curve.append({"step": done, "train": running, "validation": validation})
                state = {"recipe": asdict(recipe), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
                partial = checkpoint.with_suffix(".partial")
                torch.save({**state, "step": done, "curve": curve}, partial)
                partial.replace(checkpoint)  # atomic: a kill while saving leaves the previous checkpoint whole
                rate = (done - first) * recipe.batch * recipe.context / (time.time() - began)
                progress.console.print(
                    f"step {done}: train {running:.3f} validation {validation:.3f} ({rate:.0f} tokens/s)"
                )
            progress.update(task, completed=done, loss=f"loss {running:.3f}")
    return curve


def main(
    out: Annotated[Path, typer.Option(help="folder for the finished model")] = Path(__file__).parent / "model",
    work: Annotated[Path, typer.Option(help="folder for checkpoints; a stopped run resumes from it")] = Path(
        "build/train"
    ),
    stdlib: Annotated[Path | None, typer.Option(help="Lib folder of a CPython (default: the running one)")] = None,
    steps: Annotated[int, typer.Option(help="optimizer steps")] = Recipe.steps,
    threads: Annotated[int, typer.Option(help="OpenMP threads (0: torch's default)")] = 0,
) -> None:
    """Train the bundled model and write weights, tokenizer, held-out text and model card to OUT."""
    if threads:
        torch.set_num_threads(threads)
    recipe = Recipe(steps=steps)
    work.mkdir(parents=True, exist_ok=True)
    corpus = corpora.read_stdlib(stdlib)
    typer.echo(repr(corpus))
    tokenizer = train_tokenizer(corpus.train, recipe)
    train, held_out = encode(tokenizer, corpus.train), encode(tokenizer, corpus.held_out)
    baseline = trigram_loss(train, held_out, recipe.vocabulary)
    typer.echo(f"{len(train)} training tokens, {len(held_out)} held-out; trigram baseline {baseline:.3f} nats/token")
    model = build_model(recipe, tokenizer)
    curve = fit(model, train, held_out, recipe, work)
    final = validate(model, held_out, recipe, windows=512)
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "held_out.txt").write_text(corpora.excerpt(corpus.held_out, HELD_OUT_BYTES), encoding="utf-8")
    report = {"trigram": baseline, "validation": final, "train_tokens": len(train), "held_out_tokens": len(held_out)}
    (out / "training.json").write_text(json.dumps({"recipe": asdict(recipe), **report, "curve": curve}, indent=1))
    write_card(out, corpus, asdict(recipe), report, curve)
    typer.echo(f"validation {final:.3f} nats/token, trigram {baseline:.3f}; written to {out}")


if __name__ == "__main__":
    typer.run(main)
