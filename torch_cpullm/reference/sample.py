"""The next token: penalty, temperature, three filters and a draw, each as transformers' processor of that name."""

from __future__ import annotations

from dataclasses import dataclass

import torch

NOTHING = float("-inf")


@dataclass(frozen=True)
class Filters:
    """How logits become the tokens to draw from, in this order; the defaults filter nothing.

    Attributes:
        repetition_penalty: negative logits of tokens seen so far are multiplied, others divided by it, once a token
            (CTRL, arXiv 1909.05858, section 4.1).
        temperature: divides all logits.
        top_k: the k most likely tokens stay, and those as likely as the k-th (Fan et al. 2018); 0: all.
        top_p: the fewest tokens whose probabilities add up to it stay, at least one, of equally likely ones those with
            the larger ids (Holtzman et al. 2019, section 3.1).
        min_p: tokens stay that are at least min_p times as likely as the most likely one (arXiv 2407.01082).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def scores(logits_BV: torch.Tensor, ids_BS: torch.Tensor | None, filters: Filters) -> torch.Tensor:
    """Penalised logits over the temperature, in float32: bit for bit transformers', since filters compare them."""
    wide_BV = logits_BV.float()
    if ids_BS is not None:
        seen_BV = torch.zeros_like(wide_BV, dtype=torch.bool).scatter_(1, ids_BS, True)
        penalty = filters.repetition_penalty
        wide_BV = torch.where(seen_BV, torch.where(wide_BV < 0, wide_BV * penalty, wide_BV / penalty), wide_BV)
    return wide_BV / filters.temperature


def keep_top_k(scores_BV: torch.Tensor, top_k: int) -> torch.Tensor:
    """-inf for scores below the k-th largest."""
    if not 0 < top_k < scores_BV.shape[-1]:
        return scores_BV
    least_B1 = scores_BV.sort(dim=-1).values[:, -top_k, None]
    return scores_BV.masked_fill(scores_BV < least_B1, NOTHING)


def keep_top_p(scores_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """-inf for the least likely tokens that together have a probability of at most 1 - top_p, but never for all."""
    if top_p >= 1.0:
        return scores_BV
    sorted_BV, order_BV = scores_BV.double().sort(dim=-1, stable=True)
    dropped_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - top_p
    dropped_BV[:, -1] = False
    return scores_BV.masked_fill(torch.zeros_like(dropped_BV).scatter(1, order_BV, dropped_BV), NOTHING)


def keep_min_p(scores_BV: torch.Tensor, min_p: float) -> torch.Tensor:
    """-inf for tokens less than min_p times as likely as the most likely one."""
    probability_BV = scores_BV.double().softmax(dim=-1)
    return scores_BV.masked_fill(probability_BV < min_p * probability_BV.amax(dim=-1, keepdim=True), NOTHING)


def kept(logits_BV: torch.Tensor, ids_BS: torch.Tensor | None, filters: Filters) -> torch.Tensor:
    """The scores of the tokens to draw from; -inf for all others."""
    left_BV = keep_top_k(scores(logits_BV, ids_BS, filters), filters.top_k)
    return keep_min_p(keep_top_p(left_BV, filters.top_p), filters.min_p)


def draw(kept_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """The first token at which the cumulative sum of softmax(kept), by ascending id, is above `uniform`."""
    cumulative_BV = kept_BV.double().softmax(dim=-1).cumsum(dim=-1)
    return torch.searchsorted(cumulative_BV, uniform_B[:, None] * cumulative_BV[:, -1:], right=True)[:, 0]


def sample(
    logits_BV: torch.Tensor, ids_BS: torch.Tensor | None, uniform_B: torch.Tensor, filters: Filters
) -> torch.Tensor:
    """One token a row, int64 [B]."""
    return draw(kept(logits_BV, ids_BS, filters), uniform_B)
