"""Proving a replacement: the original layer and the fused one, in float32, on what the model really passes to it.

The inputs are recorded from a forward of the user's own model (a padded prefill, then one decode step), so positions,
masks and keyword arguments are those of its own code. Both layers compute in float32 from the same weights: what
remains is rounding, and a structural difference cannot hide behind quantisation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from torch_cpullm.detect import LayerStructure
from torch_cpullm.generate.masks import visible
from torch_cpullm.kv import LayerSpec, PagedCache

# Of the largest output: 4096 float32 roundings of products summed in another order stay below 1e-5.
_TOLERANCE = 1e-4
_PROMPT_TOKENS = 6


class ProofError(Exception):
    """The two differ, or one of them could not be run; the message is the reason for explain()."""


@dataclass(frozen=True)
class Call:
    """One recorded call of a layer."""

    hidden_BTD: torch.Tensor
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """The calls of a layer, and whether it returned hidden alone or the first of a tuple."""

    calls: list[Call]
    returns_tuple: bool


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients, and the mode it had afterwards; what goes wrong becomes a ProofError."""
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            yield
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, KeyError) as error:
        raise ProofError(f"a trial forward failed ({type(error).__name__}: {error})") from error
    finally:
        model.train(training)


def _trial_prompt(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [2, T + 1]; the first sequence is padded on the left by two."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(0, vocabulary, (2, _PROMPT_TOKENS + 1), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return ids, mask


def trial_logits(model: Any) -> torch.Tensor:
    """Float32 logits of the trial prompt where it is not padding. Raises ProofError when the model cannot be run."""
    with evaluating(model):
        ids, mask = _trial_prompt(model)
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits[mask.bool()].float()


def prove_logits(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise ProofError when two runs in `dtype` differ by more than its rounding: a dozen units in the last place."""
    error = float((before - after).abs().max() / before.abs().max())
    allowed = max(_TOLERANCE, 100 * torch.finfo(dtype).eps / 8)
    if not error <= allowed:
        raise ProofError(f"the logits differ by {error:.1e} (allowed {allowed:.0e})")


def record_calls(model: Any, paths: list[str]) -> dict[str, Recording]:
    """Run `model` on a left-padded prompt and one more token; return what reached the layers at `paths`.

    Raises:
        ProofError: the model cannot be run on token ids alone.
    """
    calls: dict[str, list[Call]] = {path: [] for path in paths}
    tuples: set[str] = set()

    def before(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = dict(kwargs)
            hidden = args[0] if args else values.pop("hidden_states")
            seen = visible(values.get("attention_mask"))
            values |= {} if seen is None else {"attention_mask": seen}
            calls[path].append(Call(_snapshot(hidden), {key: _snapshot(value) for key, value in values.items()}))

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, tuple):
                tuples.add(path)

        return hook

    layers = {path: model.get_submodule(path) for path in paths}
    handles = [layer.register_forward_pre_hook(before(path), with_kwargs=True) for path, layer in layers.items()]
    handles += [layer.register_forward_hook(after(path)) for path, layer in layers.items()]
    try:
        with evaluating(model):
            ids, mask = _trial_prompt(model)
            out = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True)
            model(input_ids=ids[:, -1:], attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    return {path: Recording(calls[path], path in tuples) for path in paths}


def _snapshot(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().float().clone() if value.is_floating_point() else value.clone()
    if isinstance(value, (tuple, list)):
        return type(value)(_snapshot(item) for item in value)
    return value


def _replay(layer: Any, calls: list[Call], cache: Any, eager: bool) -> list[torch.Tensor]:
    outputs = []
    for call in calls:
        kwargs = dict(call.kwargs)
        for name in ("past_key_values", "layer_past"):
            if kwargs.get(name) is not None:
                kwargs[name] = cache
        if eager:
            kwargs["attention_mask"] = _additive(kwargs.get("attention_mask"), call.hidden_BTD)
        else:
            reason = layer.why_not_fused(call.hidden_BTD, (), kwargs)
            if reason:
                raise ProofError(reason)
        out = layer(call.hidden_BTD, **kwargs)
        outputs.append(out[0] if isinstance(out, tuple) else out)
    return outputs


def _additive(mask: torch.Tensor | None, hidden_BTD: torch.Tensor) -> torch.Tensor | None:
    """The mask in the form eager attention adds to scores; None of several tokens is causal."""
    tokens = hidden_BTD.shape[1]
    if mask is None:
        if tokens == 1:
            return None
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def _rows_that_see(call: Call) -> torch.Tensor:
    """Bool [B, T]: rows with something to attend to. The others are padding, and every implementation differs there."""
    mask = call.kwargs.get("attention_mask")
    batch, tokens = call.hidden_BTD.shape[:2]
    if mask is None:
        return torch.ones(batch, tokens, dtype=torch.bool)
    seeing: torch.Tensor = mask.any(-1).any(1).expand(batch, tokens)
    return seeing


@torch.no_grad()
def prove_layer(
    layer: nn.Module, structure: LayerStructure, calls: list[Call], fuse: Callable[[nn.Module], LayerSpec]
) -> None:
    """Replay `calls` on a float32 copy of `layer`, fuse the copy, replay again, and compare.

    Args:
        layer: the user's own; only read.
        structure: what detect() found.
        calls: from `record_calls`, at least one.
        fuse: turns the copy into a fused layer in place, with float32 weights; returns its cache format.

    Raises:
        ProofError: the outputs differ, or the original runs in no way we know.
    """
    if not calls:
        raise ProofError("the model's forward did not call it")
    masks = [call.kwargs.get("attention_mask") for call in calls]
    if any(mask is not None and visible(mask) is None for mask in masks):
        raise ProofError("the model passes a mask that adds to the scores")
    trial = copy.deepcopy(layer).float().eval()
    config = getattr(getattr(trial, structure.attention.path), "config", None)
    if config is not None:
        config._attn_implementation = "eager"  # the copy's config: plain torch, the definition of its attention
    try:
        expected = _replay(trial, calls, DynamicCache(), eager=True)
        spec = fuse(trial)
        got = _replay(trial, calls, PagedCache([spec] * (structure.attention.layer_index + 1)), eager=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ProofError(f"a trial run failed ({type(error).__name__}: {error})") from error
    for call, wanted, have in zip(calls, expected, got, strict=True):
        rows = _rows_that_see(call)
        difference = float((wanted - have)[rows].abs().max() / wanted[rows].abs().max())
        if not difference <= _TOLERANCE:
            raise ProofError(
                f"the fused layer's output differs from the original's by {difference:.1e} (allowed {_TOLERANCE:.0e})"
            )
