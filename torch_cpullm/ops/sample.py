"""The next token of every row: penalty, temperature, top-k, top-p, min-p and the draw in one pass over the logits."""

from __future__ import annotations

import torch

from torch_cpullm.ops.library import fake, kernels
from torch_cpullm.reference.sample import Filters

__all__ = ["Filters", "sample"]


def sample(
    logits_BV: torch.Tensor, ids_BS: torch.Tensor | None, uniform_B: torch.Tensor, filters: Filters
) -> torch.Tensor:
    """Draw one token a row: the first whose cumulative probability, by ascending id, is above uniform_B. int64 [B].

    The filters are transformers' own, in its order, computed in float32; softmax sums in float64. A row's token does
    not depend on its batch, on threads or on the ISA level.

    Args:
        logits_BV: float32, bfloat16 or float16; -inf rules a token out.
        ids_BS: int64 tokens so far, for the repetition penalty (a token may come more than once); None where that is 1.
        uniform_B: float64 in [0, 1), one random number a row.
        filters: what stays to draw from.

    Raises:
        ValueError: a row with NaN or +inf, or with nothing but -inf; a number out of its range; a shape.
        IndexError: an id outside [0, V).
        TypeError: a dtype.

    Source: Devroye 1986, Non-Uniform Random Variate Generation, section III.2 (inversion); Filters names the others'.
    """
    numbers = (filters.temperature, filters.top_k, filters.top_p, filters.min_p, filters.repetition_penalty)
    tokens_B: torch.Tensor = kernels.sample(logits_BV, ids_BS, uniform_B, *numbers)
    return tokens_B


@fake("sample")
def _(logits: torch.Tensor, *_: object) -> torch.Tensor:
    return logits.new_empty((logits.shape[0],), dtype=torch.int64)
