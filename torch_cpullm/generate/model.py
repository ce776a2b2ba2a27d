"""The class of an optimised model: the user's own, with a paged cache where transformers would make a dynamic one.

Ranks that share a model have it without our cache as well: it keeps their generate() in step.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, cast

import torch
from torch import nn
from transformers import LogitsProcessorList

from torch_cpullm.config import Sampler
from torch_cpullm.errors import PackedWeightError
from torch_cpullm.generate.loop import decode, is_plain
from torch_cpullm.generate.ranks import Ranks, SharedCriteria, SharedScores
from torch_cpullm.generate.sampler import FusedSampler
from torch_cpullm.kv import LayerSpec, PagedCache

_OWN_CACHE = (None, "dynamic", "dynamic_full")  # cache_implementation values that leave the choice to us


class GeneratingModel:
    """Mixin in front of a model's own class.

    `_cpullm_kv` lists the layers' share of a page (none: the cache is transformers'), `_cpullm_layers` their paths,
    `_cpullm_sampler` is Config.sampler, `_cpullm_ranks` those that share the model (None: nobody).

    A cache the user passes is used as it is; `cache_implementation="static"` and the like still get transformers' own.
    """

    _cpullm_kv: list[LayerSpec]
    _cpullm_layers: tuple[str, ...]
    _cpullm_sampler: Sampler
    _cpullm_ranks: Ranks | None

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> Any:
        criteria = super()._get_stopping_criteria(*args, **kwargs)  # type: ignore[misc]
        return criteria if self._cpullm_ranks is None else SharedCriteria(criteria, self._cpullm_ranks)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        processors = super()._get_logits_processor(*args, **kwargs)  # type: ignore[misc]
        if self._cpullm_ranks is None or self._cpullm_kv:
            return processors
        return LogitsProcessorList([*processors, SharedScores(self._cpullm_ranks)])

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> Any:
        if (
            self._cpullm_kv
            and model_kwargs.get("past_key_values") is None
            and generation_config.use_cache is not False
            and generation_config.cache_implementation in _OWN_CACHE
        ):
            model_kwargs["past_key_values"] = PagedCache(self._cpullm_kv)
            return None
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)  # type: ignore[misc]

    def _sample(
        self,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Greedy search and sampling: our loop where it does the same as transformers', else theirs."""
        parts = (input_ids, logits_processor, stopping_criteria, generation_config)
        plain = is_plain(self, generation_config, synced_gpus, model_kwargs)
        fused = self._cpullm_sampler == "fused" and generation_config.do_sample
        sampler = FusedSampler.of(logits_processor) if fused and plain else None
        if fused and sampler is None:
            names = ", ".join(type(processor).__name__ for processor in logits_processor)
            warnings.warn(
                "sampler='fused' draws plain sampling with repetition_penalty, temperature, top_k, top_p and min_p; "
                f"these tokens are drawn by transformers: {names if plain else 'its own loop was asked for more'}",
                stacklevel=2,
            )
        if plain:
            return decode(self, *parts, streamer, model_kwargs, sampler)
        return super()._sample(*parts, synced_gpus, streamer, **model_kwargs)  # type: ignore[misc]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Ask where `fn` moves tensors before anything has moved: packed weights stay on the CPU."""
        moved = fn(torch.empty(0))
        if moved.device.type != "cpu":
            raise PackedWeightError(
                f"device: packed weights live on the CPU, asked to move to {moved.device}; "
                "call torch_cpullm.restore(model) first"
            )
        return super()._apply(fn, recurse)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by the original class, which can be imported; ours is made on the fly."""
        return _rebuild, (type(self).__mro__[2],), self.__getstate__()  # type: ignore[attr-defined]


def _wrap_forward(original: type[nn.Module]) -> Any:
    inner = original.forward

    @functools.wraps(inner)  # generate() reads the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._cpullm_kv:
            return inner(self, *args, **kwargs)
        use_cache = kwargs.get("use_cache")
        wanted = self.config.get_text_config(decoder=True).use_cache if use_cache is None else use_cache
        differentiates = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        fresh = len(args) <= 1 and kwargs.get("past_key_values") is None
        if wanted and fresh and not self.training and not differentiates:
            kwargs["past_key_values"] = PagedCache(self._cpullm_kv)
        return inner(self, *args, **kwargs)

    return forward


def _wrap_generate(original: type[nn.Module]) -> Any:
    inner = cast("Any", original).generate

    @functools.wraps(inner)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._cpullm_ranks is None:
            return inner(self, *args, **kwargs)
        with self._cpullm_ranks.generating(args, kwargs) as shared:
            return inner(self, *args, **shared)

    return generate


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def generating_class(original: type[nn.Module]) -> type[nn.Module]:
    """The class of `original`'s optimised models: same name, because checkpoints record it."""
    if original not in _classes:
        names = {key: getattr(original, key) for key in ("__module__", "__qualname__", "__doc__")}
        members = {**names, "forward": _wrap_forward(original)}
        if hasattr(original, "generate"):
            members["generate"] = _wrap_generate(original)
        _classes[original] = type(original.__name__, (GeneratingModel, original), members)
    return _classes[original]


def _rebuild(original: type[nn.Module]) -> nn.Module:
    made = generating_class(original)
    return made.__new__(made)
