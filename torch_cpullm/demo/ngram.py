"""The yardstick the bundled model must beat: an interpolated Kneser-Ney trigram over the same tokens.

A model that is no better than counting has learnt nothing a quantiser could damage, so the training run reports both.
Method: interpolated Kneser-Ney with one absolute discount per order (Chen and Goodman 1998, section 2.7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class _Level:
    """Counts of one order, sorted by key so that look-ups are binary searches."""

    keys: Tokens  # packed n-gram
    counts: Tokens  # raw for the highest order, continuation counts (distinct left neighbours) below
    contexts: Tokens  # packed (n-1)-gram
    context_totals: Tokens  # sum of `counts` with that context
    context_distinct: Tokens  # distinct continuations of that context
    discount: float


def _look_up(table: Tokens, values: Tokens, keys: Tokens) -> Tokens:
    position = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[position] == keys, values[position], 0)


def _level(keys: Tokens, counts: Tokens, vocabulary: int) -> _Level:
    contexts, inverse = np.unique(keys // vocabulary, return_inverse=True)
    singles, doubles = int((counts == 1).sum()), int((counts == 2).sum())
    # Ney's estimate D = n1 / (n1 + 2 n2); with no singletons there is nothing to discount.
    discount = singles / (singles + 2 * doubles) if singles else 0.0
    return _Level(
        keys=keys,
        counts=counts,
        contexts=contexts,
        context_totals=np.bincount(inverse, weights=counts).astype(np.int64),
        context_distinct=np.bincount(inverse).astype(np.int64),
        discount=discount,
    )


def trigram_loss(train: Tokens, held_out: Tokens, vocabulary: int) -> float:
    """Mean negative log-likelihood in nats per token of `held_out` under a trigram counted on `train`.

    Args:
        train: token ids, one dimension.
        held_out: token ids, one dimension, at least three.
        vocabulary: number of token ids; `vocabulary ** 3` must fit an int64.
    """
    if len(train) < 3 or len(held_out) < 3:
        raise ValueError(
            f"trigram_loss: expected at least 3 tokens on both sides, got {len(train)} and {len(held_out)}"
        )
    trigrams, trigram_counts = np.unique(
        (train[:-2] * vocabulary + train[1:-1]) * vocabulary + train[2:], return_counts=True
    )
    bigrams, bigram_counts = np.unique(trigrams % vocabulary**2, return_counts=True)
    unigrams, unigram_counts = np.unique(bigrams % vocabulary, return_counts=True)
    levels = [_level(bigrams, bigram_counts, vocabulary), _level(trigrams, trigram_counts, vocabulary)]

    target = held_out[2:]
    # Lowest order: continuation counts with one pseudo-count each, so that unseen tokens keep some mass.
    probability = (_look_up(unigrams, unigram_counts, target) + 1.0) / (unigram_counts.sum() + vocabulary)
    for level, context in zip(levels, (held_out[1:-1], held_out[:-2] * vocabulary + held_out[1:-1]), strict=True):
        total = _look_up(level.contexts, level.context_totals, context)
        distinct = _look_up(level.contexts, level.context_distinct, context)
        count = _look_up(level.keys, level.counts, context * vocabulary + target)
        seen = total > 0
        safe_total = np.maximum(total, 1)
        interpolated = (np.maximum(count - level.discount, 0.0) + level.discount * distinct * probability) / safe_total
        probability = np.where(seen, interpolated, probability)
    return -math.fsum(np.log(probability)) / len(target)
