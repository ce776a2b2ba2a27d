"""Tokens per second of a model's own generate(), prefill and decode apart, compared fairly.

The two virtual CPUs of a cloud machine move between physical cores every few seconds, and with them every speed. So
contenders take turns lap by lap, in alternating order, and medians are compared; two separate runs never are.
"""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers.generation.streamers import BaseStreamer

from torch_cpullm.benchmark.steps import Advance, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch_cpullm.benchmark.causal_lm import CausalLM

WARM_UP_PROMPT, WARM_UP_TOKENS = 32, 4  # touches every weight once in both forms of the kernels
MIN_LAPS, MAX_LAPS = 3, 15  # the median of 3 survives one disturbed lap; more than 15 tell nothing new


@dataclass(frozen=True)
class Lap:
    """One generate() call: seconds to the first new token, and seconds for all the tokens after it."""

    prompt_tokens: int
    prefill_s: float
    decoded_tokens: int
    decode_s: float

    @property
    def prefill(self) -> float:
        """Prompt tokens per second, everything from the call to the first new token counted."""
        return self.prompt_tokens / self.prefill_s

    @property
    def decode(self) -> float:
        """New tokens per second after the first one."""
        return self.decoded_tokens / self.decode_s


@dataclass(frozen=True)
class Speed:
    """All laps of one contender."""

    laps: tuple[Lap, ...]

    @property
    def prefill(self) -> float:
        """Median of the laps, tokens per second."""
        return statistics.median(lap.prefill for lap in self.laps)

    @property
    def decode(self) -> float:
        """Median of the laps, tokens per second."""
        return statistics.median(lap.decode for lap in self.laps)

    def __repr__(self) -> str:
        """Medians and how many laps they are of."""
        return f"Speed(prefill {self.prefill:.1f}, decode {self.decode:.1f} tokens/s, {len(self.laps)} laps)"


class _Stopwatch(BaseStreamer):
    """Notes when generate() hands over tokens: the prompt first, then one at a time."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


@contextmanager
def _endless(model: CausalLM) -> Iterator[None]:
    """Let no end-of-text token shorten a lap, without a logits processor that would cost time in each step."""
    config = model.generation_config
    kept = config.eos_token_id
    config.eos_token_id = None
    try:
        yield
    finally:
        config.eos_token_id = kept


def time_lap(model: CausalLM, prompt_BT: torch.Tensor, new_tokens: int) -> Lap:
    """Time one greedy generate() of `new_tokens` (at least 2) after `prompt_BT`, one row of token ids."""
    watch = _Stopwatch()
    with _endless(model), torch.inference_mode():
        start = time.perf_counter()
        model.generate(
            prompt_BT,
            attention_mask=torch.ones_like(prompt_BT),
            max_new_tokens=new_tokens,
            do_sample=False,
            streamer=watch,
        )
    made = len(watch.times) - 1  # the first hand-over is the prompt
    if made != new_tokens:
        raise RuntimeError(f"time_lap: expected {new_tokens} new tokens from generate(), got {made}")
    return Lap(
        prompt_tokens=prompt_BT.shape[1],
        prefill_s=watch.times[1] - start,
        decoded_tokens=new_tokens - 1,
        decode_s=watch.times[-1] - watch.times[1],
    )


def warm_up(model: CausalLM, prompt_BT: torch.Tensor) -> None:
    """Run a short generate(), so that no lap pays for first touches and lazy set-up."""
    time_lap(model, prompt_BT[:, :WARM_UP_PROMPT], WARM_UP_TOKENS)


def race(
    contenders: Mapping[str, CausalLM],
    prompt_BT: torch.Tensor,
    new_tokens: int,
    budget_s: float,
    advance: Advance = silent,
) -> dict[str, Speed]:
    """Time the contenders lap by lap in turns.

    Args:
        contenders: name to model; one alone is timed alone.
        prompt_BT: one row of token ids, the same for all.
        new_tokens: to generate in each lap.
        budget_s: seconds to spend, kept within 3 to 15 laps.
        advance: told the laps that are run.
    """
    for model in contenders.values():
        warm_up(model, prompt_BT)
    laps: dict[str, list[Lap]] = {name: [] for name in contenders}
    start, wanted, done = time.perf_counter(), MIN_LAPS, 0
    while done < wanted:
        order = list(contenders) if done % 2 == 0 else list(contenders)[::-1]
        for name in order:
            laps[name].append(time_lap(contenders[name], prompt_BT, new_tokens))
        done += 1
        if done == 1:
            wanted = max(MIN_LAPS, min(MAX_LAPS, int(budget_s / (time.perf_counter() - start))))
        advance(done, wanted)
    return {name: Speed(tuple(made)) for name, made in laps.items()}
