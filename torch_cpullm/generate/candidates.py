"""The next token where ranks have the logits of some words each: few of them need to travel.

    greedy      each rank's largest logit and its word          8 bytes for each row
    top_k       each rank's k largest and some more             of which all ranks know what the k largest of all are
    anything    all logits, on rank 0 as one rank would have them

After arXiv 2407.07304, section 2.3, but exact: a word that ties with the k-th is kept, as transformers keeps it, and
where a rank may have held back such a word all logits travel after all. Rank 0 chooses, and tells the others.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper

from torch_cpullm.distributed.gathering import Gathering
from torch_cpullm.generate.choice import Choice, largest, several_largest
from torch_cpullm.generate.ranks import Ranks
from torch_cpullm.ops.comm import all_gather

_SPARE = 16  # candidates above k: bfloat16 has many ties
_MOST_K = 4096
_TIE = 1e-6  # relative: a temperature may round two logits to one score


class SharedChoice:
    """`Choice` of all ranks together.

    Attributes:
        apart: whether logits may stay on the rank that has computed them.
    """

    def __init__(self, choice: Choice, ranks: Ranks, gathering: Gathering | None) -> None:
        """`gathering`: of the head's outputs; None where every rank has all of them."""
        self._choice, self._ranks = choice, ranks
        self._k = _candidates_of(choice)
        self.apart = gathering is not None and self._k > 0
        self._gathering = gathering

    def tokens(self, ids_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        """One for each row, int64 [B]. The logits are all there, or where `apart` holds this rank's own."""
        gathering = self._gathering
        if gathering is None or not self.apart or logits_BV.shape[-1] == gathering.spans[-1].stop:
            return self._decided(ids_BT, logits_BV)
        first = gathering.spans[self._ranks.rank].first
        if not self._choice.samples:
            return self._ranks.decide(_first_of_largest(logits_BV, first, gathering.group))
        found = _candidates(logits_BV, first, self._k, gathering)
        if found is None:
            return self._decided(ids_BT, gathering.gather(logits_BV))
        if self._choice.draws_by_order:
            words_BC, order_BC = found[1].sort()
            chosen_B = self._mine(ids_BT, found[0].gather(1, order_BC))
            return self._ranks.decide(words_BC.gather(1, chosen_B[:, None])[:, 0])
        return self._decided(ids_BT, self._rows(*found))

    def _rows(self, values_BC: torch.Tensor, words_BC: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] with no more than candidates."""
        assert self._gathering is not None
        shape = (len(values_BC), self._gathering.spans[-1].stop)
        return torch.full(shape, float("-inf")).scatter_(1, words_BC, values_BC)

    def _decided(self, ids_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        return self._ranks.decide(self._mine(ids_BT, logits_BV))

    def _mine(self, ids_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        """Rank 0's choice; anything elsewhere."""
        mine = self._ranks.rank == 0
        return self._choice.tokens(ids_BT, logits_BV) if mine else torch.zeros(len(ids_BT), dtype=torch.long)


def _candidates_of(choice: Choice) -> int:
    """How many of the largest logits decide; 0: maybe all.

    A temperature changes no order, and whatever comes behind top_k sees no other words.
    """
    processors: list[Any] = list(choice.processors)
    if not choice.samples:
        return 0 if processors else 1
    while processors and type(processors[0]) is TemperatureLogitsWarper:
        del processors[0]
    if processors and type(processors[0]) is TopKLogitsWarper and processors[0].top_k <= _MOST_K:
        return int(processors[0].top_k)
    return 0


def _first_of_largest(own_BN: torch.Tensor, first: int, group: int) -> torch.Tensor:
    """The first word of the largest logit of all ranks, [B]; they have their words in order."""
    index_B1 = largest(own_BN)[:, None]
    values_B = own_BN.gather(1, index_B1)[:, 0].float()
    pair_B2 = torch.stack([values_B.view(torch.int32), (index_B1[:, 0] + first).int()], dim=1)
    of_all_RB2 = all_gather(pair_B2, group)
    winner_1B = of_all_RB2[..., 0].contiguous().view(torch.float32).argmax(dim=0, keepdim=True)
    return of_all_RB2[..., 1].gather(0, winner_1B)[0].long()


def _candidates(
    own_BN: torch.Tensor, first: int, k: int, gathering: Gathering
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Logits, float32 [B, C], and their words: the k largest of all ranks and what ties with them, at least.

    None on all ranks where some may be missing.
    """
    sent = min(k + _SPARE, *(len(span) for span in gathering.spans))
    values_BM, index_BM = several_largest(own_BN.float(), sent)
    both_BL = torch.cat([values_BM.view(torch.int32), (index_BM + first).int()], dim=1)
    of_all_RBL = all_gather(both_BL, gathering.group)
    values_RBM = of_all_RBL[..., :sent].view(torch.float32)
    values_BC = values_RBM.transpose(0, 1).flatten(1)
    if values_BC.shape[1] < k:
        return None
    limit_B = values_BC.topk(k).values[:, -1]
    limit_B = limit_B - limit_B.abs() * _TIE
    smallest = [of_rank[:, -1] for of_rank, span in zip(values_RBM, gathering.spans, strict=True) if len(span) > sent]
    if any(bool((smallest_B >= limit_B).any()) for smallest_B in smallest):
        return None
    return values_BC, of_all_RBL[..., sent:].transpose(0, 1).flatten(1).long()
