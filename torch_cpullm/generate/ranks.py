"""generate() on all ranks of a model: the same call, the same random numbers, one opinion on when to stop.

Each rank runs transformers' Python by itself, and computes with the others, or all of it where nothing is shared. So
they must not part: what depends on a rank's clock, or on what the user does on one rank only, is decided on rank 0 and
broadcast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteriaList, TextIteratorStreamer

from torch_cpullm.distributed.agreement import meet, require_same
from torch_cpullm.ops.comm import broadcast_

_PLAIN = (bool, int, float, str, torch.dtype)


@dataclass(frozen=True)
class Ranks:
    """The ranks that share a model, and which of them this one is."""

    rank: int
    size: int
    group: int

    @contextmanager
    def generating(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Around a call of generate(): what it is to be called with in place of `kwargs`.

        Raises:
            RankError: the ranks have been given different arguments.
            CollectiveError: a rank has ended, or does not come.
        """
        meet(self.group)
        require_same(self.group, "generate", _facts(args, kwargs))
        state = torch.get_rng_state()
        broadcast_(state, 0, self.group)
        torch.set_rng_state(state)
        streamer = kwargs.get("streamer")
        if streamer is None or self.rank == 0:
            yield kwargs
            return
        try:
            yield {**kwargs, "streamer": None}
        finally:
            if isinstance(streamer, TextIteratorStreamer):  # somebody may be waiting for its end
                streamer.end()

    def decide(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` as rank 0 has it."""
        decided = tensor.contiguous()
        broadcast_(decided, 0, self.group)
        return decided


class SharedCriteria(StoppingCriteriaList):
    """Stopping criteria that rank 0 decides for all: a clock, or the user's own, may say otherwise elsewhere."""

    def __init__(self, criteria: StoppingCriteriaList, ranks: Ranks) -> None:
        super().__init__(criteria)
        self._ranks = ranks

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which sequences are done, bool [B]."""
        return self._ranks.decide(super().__call__(input_ids, scores, **kwargs))


class SharedScores(LogitsProcessor):
    """Rank 0's scores for all, behind all other processors, where every rank computes the whole model by itself.

    torch's kernels sum in another order with other threads or on another CPU, and a last bit may decide.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores to choose by, [B, V]."""
        return self._ranks.decide(scores)


def _facts(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, object]:
    """What ranks must agree in, of the arguments of generate(): tensors, numbers, texts. Others are taken to be alike.

    A streamer may be there on rank 0 alone, so None is no fact.
    """
    given = {f"argument {index}": value for index, value in enumerate(args)} | dict(sorted(kwargs.items()))
    facts: dict[str, object] = {}
    for name, value in given.items():
        if isinstance(value, (torch.Tensor, *_PLAIN)):
            facts[name] = value
        elif isinstance(value, GenerationConfig):
            facts[name] = value.to_json_string()
        elif isinstance(value, list) and all(isinstance(each, (*_PLAIN, list)) for each in value):
            facts[name] = value
    return facts
