"""transformers' own generate(), stock and optimised: the same calls, on different models."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

import torch_cpullm
from torch_cpullm.benchmark.engines.engine import Engine, Format
from torch_cpullm.errors import StoredModelError

if TYPE_CHECKING:
    from pathlib import Path

    from torch_cpullm.benchmark.engines.engine import Ids
    from torch_cpullm.config import KvCache, Weights


class Clock(BaseStreamer):
    """Notes when generate() hands over tokens: the prompt first, then one step at a time."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


class HuggingFace(Engine):
    """A model of transformers, whichever way it was made; its cache is passed from call to call."""

    _model: Any

    def _begin(self, threads: int, batch: int) -> None:
        torch.set_num_threads(threads)
        self._model.generation_config.eos_token_id = None
        self.reset(batch)

    @property
    def length(self) -> int:
        """Tokens that each sequence holds."""
        return self._ids_BT.shape[1]

    def reset(self, batch: int) -> None:
        """Forget all tokens."""
        self._ids_BT = torch.empty(batch, 0, dtype=torch.int64)
        self._next_B = torch.zeros(batch, dtype=torch.int64)
        self._cache: Any = None

    def extend(self, ids_BT: Ids) -> Ids:
        """Append a prompt, by a generate() of one token."""
        self._ids_BT = torch.cat([self._ids_BT, torch.from_numpy(ids_BT)], dim=1)
        out = self._generate(self._ids_BT, 1, return_dict_in_generate=True)
        self._cache = out.past_key_values
        self._next_B = out.sequences[:, -1]
        return self._next_B.numpy()

    def decode(self, tokens: int) -> tuple[list[float], Ids]:
        """Generate greedily, by one generate()."""
        clock = Clock()
        start_BT = torch.cat([self._ids_BT, self._next_B[:, None]], dim=1)
        all_BT = self._generate(start_BT, tokens, streamer=clock)
        self._ids_BT, self._next_B = all_BT[:, :-1], all_BT[:, -1]
        return clock.times[1:], all_BT[:, start_BT.shape[1] :].numpy()

    def crop(self, length: int) -> None:
        """Cut the cache back."""
        if length < self.length:
            self._cache.crop(length - self.length)
            self._ids_BT = self._ids_BT[:, :length]

    def _generate(self, ids_BT: torch.Tensor, tokens: int, **asked: Any) -> Any:
        return self._model.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            past_key_values=self._cache,
            max_new_tokens=tokens,
            do_sample=False,
            **asked,
        )


class Stock(HuggingFace):
    """As transformers loads it."""

    formats = (Format("bf16", 16),)

    @classmethod
    def prepare(cls, checkpoint: Path, format: str) -> Path:  # noqa: ARG003  (it has one)
        """Nothing to do."""
        return checkpoint

    def __init__(self, prepared: Path, format: str, threads: int, batch: int, context: int) -> None:
        transformers_logging.disable_progress_bar()
        self._model = AutoModelForCausalLM.from_pretrained(prepared, dtype=torch.bfloat16)
        self.weight_bytes = sum(parameter.nbytes for parameter in self._model.parameters())
        self._begin(threads, batch)

    def reset(self, batch: int) -> None:
        """Forget all tokens."""
        super().reset(batch)
        self._cache = DynamicCache(config=self._model.config)


class Own(HuggingFace):
    """torch_cpullm, from the folder that `torch_cpullm.save` writes; INT8 keys and values beside quantised weights."""

    formats = (Format("bf16", 16), Format("int8", 8), Format("int4", 4))

    @classmethod
    def prepare(cls, checkpoint: Path, format: str) -> Path:
        """Optimise and save, packed one weight after the other."""
        target = checkpoint.with_name(f"{checkpoint.name}.torch_cpullm-{format}")
        if not _is_saved(target):
            transformers_logging.disable_progress_bar()
            config = torch_cpullm.CpuLlmConfig(weights=cast("Weights", format), kv_cache=_kv(format))
            model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, quantization_config=config)
            part = target.with_name(f".{target.name}")
            shutil.rmtree(part, ignore_errors=True)
            torch_cpullm.save(model, part)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
        return target

    def __init__(self, prepared: Path, format: str, threads: int, batch: int, context: int) -> None:
        self._model = torch_cpullm.load(prepared, copy=True)
        self.kv_bits = 16 if _kv(format) == "bf16" else 8
        self.weight_bytes = torch_cpullm.explain(self._model).weight_bytes_after
        self._begin(threads, batch)


def _is_saved(folder: Path) -> bool:
    """Whether this version can load it; one of before may have left it."""
    try:
        torch_cpullm.load(folder)
    except StoredModelError:
        return False
    return True


def _kv(format: str) -> KvCache:
    return "bf16" if format == "bf16" else "int8"
