"""generate() on all ranks of a model: the same call, the same random numbers, one opinion on when to stop.

Each rank runs transformers' Python by itself, and computes with the others, or all of it where nothing is shared. So
they must not part: what depends on a rank's clock, or on what the user does on one rank only, is decided on rank 0 and
broadcast.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteriaList, TextIteratorStreamer

from torch_cpullm.distributed.agreement import meet, require_same
from torch_cpullm.errors import RankError, UnsupportedModelError
from torch_cpullm.ops.comm import broadcast_

_PLAIN = (bool, int, float, str, torch.dtype)


@dataclass(frozen=True)
class Ranks:
    """The ranks that share a model, and which of them this one is."""

    rank: int
    size: int
    group: int

    def __deepcopy__(self, _: dict[int, Any]) -> Ranks:
        """Itself: a copy of a model is shared by the same ranks."""
        return self

    def __reduce__(self) -> NoReturn:
        """A number of a group means another one, or none, where it is unpickled."""
        raise UnsupportedModelError(
            f"model: expected one that no ranks share, got that of rank {self.rank} of {self.size}, which computes in "
            "this process alone; save() the model before it is shared (optimize it without "
            "torch_cpullm.distributed.init()), and load() that on all ranks"
        )

    @contextmanager
    def generating(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Around a call of generate(): what it is to be called with in place of `kwargs`.

        Raises:
            RankError: the ranks have been given different arguments, or another thread of this one is generating.
            CollectiveError: a rank has ended, or does not come; or this is a child of fork().
        """
        # Whose turn it is would be a matter of luck on each rank. The same thread may come again: an assistant model.
        turn = _turn(self.group)
        if not turn.acquire(blocking=False):
            raise RankError(
                "generate: expected one call at a time on the ranks, got one while another thread is in generate(); "
                "let one thread make all calls, in the same order on all ranks"
            )
        try:
            with self._together(args, kwargs) as shared:
                yield shared
        finally:
            turn.release()

    @contextmanager
    def _together(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
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


@functools.cache
def _turn(_: int) -> threading.RLock:
    """Of the one thread that may generate with a group."""
    return threading.RLock()


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
