"""Perplexity on held-out text, measured through the cache that generate() uses.

A plain forward over a window attends to keys and values that were never stored, so it cannot see what an INT8 cache
costs. Here a window goes in piece by piece and each piece attends to the earlier ones as the model's own cache returns
them; generate() itself prepares that cache, for a stock model and an optimised one alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from torch_cpullm.benchmark.steps import Advance, silent

if TYPE_CHECKING:
    from transformers import Cache

    from torch_cpullm.benchmark.causal_lm import CausalLM

WINDOW = 512
PIECE = 32  # at most 31 of up to 511 keys a query sees are fresh: on average 94 % come out of the cache
LOGITS_AT_ONCE = 2**22  # elements, 16 MiB in fp32: one piece of 16 windows at a vocabulary of 8192, of one at 131072


def windows_of(ids_T: torch.Tensor, window: int = WINDOW, limit: int | None = None) -> torch.Tensor:
    """Cut token ids `[T]` into whole windows `[N, window]`, at most `limit`, spread evenly over the text.

    Raises:
        ValueError: the text is shorter than one window.
    """
    count = len(ids_T) // window
    if count == 0:
        raise ValueError(f"ids_T: expected at least one window of {window} tokens, got {len(ids_T)} tokens")
    windows_NT = ids_T[: count * window].view(count, window)
    if limit is None or limit >= count:
        return windows_NT
    return windows_NT[torch.linspace(0, count - 1, limit).round().long()]


@torch.inference_mode()
def perplexity(
    model: CausalLM,
    windows_NT: torch.Tensor,
    piece: int = PIECE,
    advance: Advance = silent,
) -> float:
    """Exponential of the mean negative log-likelihood of every token of each window but its first.

    Args:
        model: a causal LM of transformers, in eval mode, stock or optimised.
        windows_NT: token ids, one window a row; rows are scored in batches.
        piece: tokens fed at a time; 1 is exactly the decoding of generate().
        advance: told the windows that are scored.

    Source: the loss is computed in float32 and summed in float64 whatever the model's dtype.
    """
    batch = max(1, LOGITS_AT_ONCE // (piece * model.config.get_text_config().vocab_size))
    loss, total = 0.0, len(windows_NT)
    for start in range(0, total, batch):
        loss += _loss(model, windows_NT[start : start + batch], piece)
        advance(min(start + batch, total), total)
    return math.exp(loss / (windows_NT.numel() - total))


def _loss(model: CausalLM, window_BT: torch.Tensor, piece: int) -> float:
    """Sum the negative log-likelihood in nats of a batch of windows."""
    losses: list[float] = []

    # generate() accepts a decoding loop of the caller's and hands it the cache that it would have used itself.
    def score(
        model: CausalLM, input_ids: torch.Tensor, *_: object, past_key_values: Cache, **__: object
    ) -> torch.Tensor:
        length = input_ids.shape[1]
        for first in range(0, length - 1, piece):
            last = min(first + piece, length - 1)
            piece_BT, target_BT = input_ids[:, first:last], input_ids[:, first + 1 : last + 1]
            logits_BTV = model(input_ids=piece_BT, past_key_values=past_key_values, use_cache=True).logits
            losses.append(float(cross_entropy(logits_BTV.float().flatten(0, 1), target_BT.flatten(), reduction="sum")))
        return input_ids

    model.generate(
        window_BT,
        attention_mask=torch.ones_like(window_BT),
        max_new_tokens=1,
        do_sample=False,
        custom_generate=score,
    )
    return math.fsum(losses)


def change(before: float, after: float) -> float:
    """Relative change of perplexity in percent; above zero is worse."""
    return 100.0 * (after / before - 1.0)
