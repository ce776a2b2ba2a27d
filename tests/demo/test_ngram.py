"""The trigram baseline is a probability distribution, and it learns."""

import math

import numpy as np
import pytest

from torch_cpullm.demo.ngram import trigram_loss

VOCABULARY = 6
# A pattern with exceptions, so that every order has singletons, doubletons and unseen successors. Token 5 never occurs.
TRAIN = np.array([0, 1, 2, 3, 0, 1, 2, 4, 0, 1, 3, 2, 0, 1, 2, 3, 4, 4, 0, 2, 1, 0, 3, 1, 2, 0], dtype=np.int64)


@pytest.mark.parametrize("context", [(0, 1), (1, 2), (4, 4), (3, 3), (5, 1), (1, 5), (5, 5)])
def test_probabilities_sum_to_one(context: tuple[int, int]) -> None:
    """For contexts that were seen, half seen and never seen."""
    held_out = [np.array([*context, token], dtype=np.int64) for token in range(VOCABULARY)]
    probabilities = [math.exp(-trigram_loss(TRAIN, one, VOCABULARY)) for one in held_out]
    assert min(probabilities) > 0.0
    assert sum(probabilities) == pytest.approx(1.0, abs=1e-12)


def test_beats_uniform_on_text_like_its_own() -> None:
    assert trigram_loss(TRAIN, TRAIN, VOCABULARY) < 0.75 * math.log(VOCABULARY)


def test_loss_is_the_mean_over_targets() -> None:
    held_out = np.array([0, 1, 2, 3, 0], dtype=np.int64)
    parts = [trigram_loss(TRAIN, held_out[at : at + 3], VOCABULARY) for at in range(3)]
    assert trigram_loss(TRAIN, held_out, VOCABULARY) == pytest.approx(sum(parts) / 3, rel=1e-12)


def test_no_discount_where_no_count_is_one() -> None:
    """Ney's estimate would divide by zero; then there is nothing to discount and nothing to back off with."""
    twice = np.array([0, 1] * 8, dtype=np.int64)
    assert trigram_loss(twice, twice, 2) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("train", "held_out"), [(2, 3), (3, 2)])
def test_too_short_is_refused(train: int, held_out: int) -> None:
    with pytest.raises(ValueError, match="at least 3 tokens"):
        trigram_loss(TRAIN[:train], TRAIN[:held_out], VOCABULARY)
