"""Where the time of one prefill and of one decoded token goes: each operator's time, bytes and operations.

Operators are timed as torch dispatches them, ours and torch's own; what the step takes beyond their sum is the host:
Python, transformers and the dispatcher.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

from torch_cpullm.benchmark.engines.hugging_face import HuggingFace
from torch_cpullm.ops.attention import PAGE_TOKENS
from torch_cpullm.ops.linear import packed_info

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch_cpullm.machine.probe import Roofline

HOST = "host"
_WARM_UP = 2


@dataclass(frozen=True)
class Spent:
    """All calls of one operator in one step.

    Attributes:
        name: the operator's, and the shape of its weight where it has one.
        calls: in the step.
        seconds: all together.
        bytes: read: packed weights, cached keys and values; of torch's operators, all tensors.
        operations: multiplications and additions; 0 where they do not count.
        integer: whether the weights are quantised: which peak they are held against.
    """

    name: str
    calls: float
    seconds: float
    bytes: float = 0.0
    operations: float = 0.0
    integer: bool = False

    def divided(self, count: int) -> Spent:
        """The share of one of `count` steps."""
        calls, seconds, bytes_, operations = (
            value / count for value in (self.calls, self.seconds, self.bytes, self.operations)
        )
        return Spent(self.name, calls, seconds, bytes_, operations, self.integer)

    def bandwidth_share(self, limits: Roofline) -> float:
        """Of the read bandwidth."""
        return self.bytes / self.seconds / limits.read_bandwidth if self.seconds else 0.0

    def peak_share(self, limits: Roofline) -> float:
        """Of the machine's fastest products."""
        integer, floating = max(limits.int8, limits.amx_int8), max(limits.bf16, limits.amx_bf16, limits.f32)
        peak = integer if self.integer and integer else floating
        return self.operations / self.seconds / peak if self.seconds else 0.0


@dataclass(frozen=True)
class Step:
    """One prefill, or one token.

    Attributes:
        name: which.
        seconds: as a user waits for it, without a profiler.
        spent: by operator, the longest first; the host last.
    """

    name: str
    seconds: float
    spent: list[Spent]


class _Recorder(TorchDispatchMode):
    """Times every operator that is dispatched while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, Spent] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
        one = _account(func, named, out, seconds)
        before = self.found.get(one.name)
        if before is not None:
            one = replace(
                one,
                calls=before.calls + 1,
                seconds=before.seconds + seconds,
                bytes=before.bytes + one.bytes,
                operations=before.operations + one.operations,
            )
        self.found[one.name] = one
        return out


def _account(func: Any, named: dict[str, Any], out: Any, seconds: float) -> Spent:
    """What one call has read and computed."""
    name = func._schema.name.removeprefix("aten::").removeprefix("torch_cpullm::")
    if not func._schema.name.startswith("torch_cpullm::"):
        tensors = [x for x in (*named.values(), out) if isinstance(x, torch.Tensor)]
        return Spent(f"torch {name}", 1, seconds, float(sum(x.nbytes for x in tensors)))
    if name == "embed":
        return Spent(name, 1, seconds, float(out.nbytes))
    values = [x for value in named.values() for x in (value if isinstance(value, (list, tuple)) else [value])]
    pages = named.get("pages")
    packed = [x for x in values if isinstance(x, torch.Tensor) and x.dtype == torch.uint8 and x is not pages]
    x = next((value for value in values if isinstance(value, torch.Tensor)), None)
    if x is None:
        return Spent(name, 1, seconds)
    rows = x.numel() // x.shape[-1]
    infos = [packed_info(weight) for weight in packed]
    read = float(sum(weight.nbytes for weight in packed))
    operations = float(sum(2 * info.out_features * info.in_features * rows for info in infos))
    if isinstance(pages, torch.Tensor):
        before, new = named["past"].tolist(), rows // len(named["past"])
        read += sum(pages.shape[1] / PAGE_TOKENS * (past + new) for past in before)
        if infos:
            operations += sum(4 * infos[-1].in_features * new * (past + (new + 1) / 2) for past in before)
    shape = f" {infos[0].out_features} x {infos[0].in_features}" if name == "linear" and infos else ""
    integer = any(info.format.quantized for info in infos)
    return Spent(name + shape, 1, seconds, read, operations, integer)


class _InMemory(HuggingFace):
    """A model that is there already."""

    formats = ()

    @classmethod
    def prepare(cls, checkpoint: Any, format: str) -> Any:
        """There is nothing to write."""
        raise NotImplementedError

    def __init__(self, model: Any, threads: int) -> None:
        self._model = model
        self._begin(threads, 1)


def profile(model: Any, prompt: int, tokens: int, repetitions: int, threads: int) -> list[Step]:
    """Profile a model's generate(): the prefill of `prompt` tokens, and decoding after them.

    Args:
        model: of transformers, optimised or not.
        prompt: tokens, random.
        tokens: to decode; a step is their mean.
        repetitions: of each measurement without a profiler; their median counts.
        threads: to compute with.
    """
    engine = _InMemory(model, threads)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids_BT = np.random.default_rng(0).integers(3, vocabulary, size=(1, prompt))

    def prefill() -> float:
        engine.reset(1)
        start = time.perf_counter()
        engine.extend(ids_BT)
        return time.perf_counter() - start

    def decode() -> float:
        engine.crop(prompt)
        start = time.perf_counter()
        times, _ = engine.decode(tokens)
        return (times[-1] - start) / tokens

    with torch.inference_mode():
        return [
            _step(f"prefill of {prompt} tokens", prefill, 1, repetitions),
            _step(f"token after {prompt}", decode, tokens, repetitions),
        ]


def _step(name: str, measure: Callable[[], float], count: int, repetitions: int) -> Step:
    """Time `measure`, which makes `count` steps, without the recorder and once with it."""
    for _ in range(_WARM_UP):
        measure()
    seconds = statistics.median(measure() for _ in range(repetitions))
    recorder = _Recorder()
    heard = register_module_forward_hook(lambda *_: None)  # so that each block is an operator of its own
    with recorder:
        measure()
    heard.remove()
    spent = [one.divided(count) for one in recorder.found.values()]
    spent.sort(key=lambda one: -one.seconds)
    host = max(0.0, seconds - sum(one.seconds for one in spent))
    return Step(name, seconds, [*spent, Spent(HOST, 1, host)])
