"""One token's forward without transformers' Python between the operators: embedding, all layers at once, norm, head.

What a forward does between its modules cannot be known from their names: it may scale what the embedding gives, cap
the logits, or pass each layer a mask of its own. So the model's own forward runs one step of every generate() while it
is watched, and each tensor is followed from module to module. Where each gets the very object that the one before
returned, with the values it had then, and all layers the same positions and mask, the steps that follow make the same
calls, and give the same bits. Anything else, and any hook that would not be called, leaves all steps to the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from torch_cpullm.generate.masks import of_tokens, visible
from torch_cpullm.kv import PagedCache
from torch_cpullm.ops.layers import LayerStack, decoder_layers

_AHEAD = 64  # tokens whose angles are made at a time
_CAPTURING = "transformers.utils.output_capturing"
Rotary = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""rotary(like_BTD, position_ids=position_BT) -> cos, sin [B, T, R]: a module of the model, or its layers' table."""
_CHANGING_ROPES = ("dynamic", "longrope")  # frequencies follow the length of the text: one token at a time


class Step:
    """Calls the modules of a step itself."""

    def __init__(self, ends: Ends, stack: LayerStack, rotary: Rotary, position_B1: torch.Tensor, masked: bool) -> None:
        """Begin at the tokens of `position_B1`; `masked`: the layers are told which tokens count."""
        self._ends, self._stack, self._rotary, self._masked = ends, stack, rotary, masked
        self._position_B1 = position_B1
        kind = getattr(rotary, "rope_type", _CHANGING_ROPES[0])  # a module without a type may do anything
        self._ahead = 1 if any(changing in kind for changing in _CHANGING_ROPES) else _AHEAD
        self._made: tuple[torch.Tensor, torch.Tensor] | None = None
        self._used = 0

    def rope(self, like_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cos and sin of the step's tokens, [B, 1, R], in the dtype of `like_BTD`."""
        if self._made is None or self._used == self._ahead:
            self._made = self._rotary(like_BTD, position_ids=self._position_B1 + torch.arange(self._ahead))
            self._position_B1 = self._position_B1 + self._ahead
            self._used = 0
        at = slice(self._used, self._used + 1)
        return self._made[0][:, at], self._made[1][:, at]

    def advance(self) -> None:
        """Go on to the next tokens."""
        self._used += 1

    def logits(
        self, token_B1: torch.Tensor, cache: PagedCache, mask_BT: torch.Tensor | None, apart: bool = False
    ) -> torch.Tensor:
        """The head's logits [B, 1, V] for one more token of each sequence, which `cache` holds from then on.

        Args:
            token_B1: ids.
            cache: of the sequences.
            mask_BT: which of their tokens count, these included, as generate() has it.
            apart: the head is one that ranks share, and its rows here are enough.
        """
        hidden_B1D = self._ends.embedding(token_B1)
        mask = of_tokens(mask_BT) if self._masked and mask_BT is not None else None
        kv = cache.open(len(token_B1), 1)
        hidden_B1D = decoder_layers(hidden_B1D, self._stack, self.rope(hidden_B1D), kv, mask)
        cache.close(1)
        self.advance()
        head: Any = self._ends.head
        normed_B1D = self._ends.norm(hidden_B1D)
        logits_B1V: torch.Tensor = head.own(normed_B1D) if apart else head(normed_B1D)
        return logits_B1V


@dataclass(frozen=True)
class Ends:
    """What stands before and behind the layers."""

    embedding: nn.Module
    norm: nn.Module
    head: nn.Module


@dataclass(frozen=True)
class _Call:
    """One call of a module, seen from outside, and what its output held when it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    held: tuple[torch.Tensor, ...]

    @staticmethod
    def seen(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> _Call:
        """A call that has just returned."""
        return _Call(args, kwargs, output, tuple(tensor.clone() for tensor in _tensors(output)))

    @property
    def is_untouched(self) -> bool:
        """Whether nobody wrote into the output afterwards."""
        return all(torch.equal(now, then) for now, then in zip(_tensors(self.output), self.held, strict=True))

    @property
    def input(self) -> Any:
        """What came first."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)

    @property
    def hidden(self) -> Any:
        """What a layer handed on."""
        return self.output[0] if isinstance(self.output, tuple) else self.output

    @property
    def rope(self) -> Any:
        """A layer's cos and sin; None where it looks up its own."""
        return self.kwargs.get("position_embeddings")

    @property
    def positions(self) -> Any:
        """A layer's."""
        return self.kwargs.get("position_ids")

    @property
    def mask(self) -> Any:
        """A layer's."""
        return self.kwargs.get("attention_mask")


class Watch:
    """Follows one forward of a model through its modules."""

    def __init__(self, model: Any) -> None:
        """`model`: optimised, with the paths of its fused layers in `_cpullm_layers`."""
        self._layers = [model.get_submodule(path) for path in model._cpullm_layers]
        self._head, self._embedding = model.get_output_embeddings(), model.get_input_embeddings()
        names = model._cpullm_layers[0].split(".")[:-2]
        self._around = [model.get_submodule(".".join(names[:count])) for count in range(len(names) + 1)]
        self._calls: dict[nn.Module, list[_Call]] = {}

    @staticmethod
    def of(model: Any, longest: int | None) -> Watch | None:
        """One for a model whose steps may be taken the short way up to `longest` tokens (None: without end)."""
        if not model._cpullm_layers or not _sees_all(model.config.get_text_config(decoder=True), longest):
            return None
        watch = Watch(model)
        ends = (watch._head, watch._embedding)
        heard = any(map(_is_heard, (*watch._around, *watch._layers)))
        return None if heard or _has_any_global_hook() or not all(isinstance(m, nn.Module) for m in ends) else watch

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note the calls of the modules that a step consists of."""

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._calls.setdefault(module, []).append(_Call.seen(args, kwargs, output))

        beside = [child for child in self._around[-1].children() if not isinstance(child, nn.ModuleList)]
        watched = {*self._layers, *beside, self._head, self._embedding}
        handles = [module.register_forward_hook(note, with_kwargs=True) for module in watched]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def found(
        self, token_B1: torch.Tensor, position_B1: torch.Tensor, mask_BT: torch.Tensor | None, logits: torch.Tensor
    ) -> Step | None:
        """The short way from here on, or None.

        Args:
            token_B1: ids that the forward was given.
            position_B1: theirs.
            mask_BT: of all tokens up to them, as generate() has it.
            logits: that the forward gave.
        """
        expected = {*self._layers, self._head, self._embedding}
        if not expected <= self._calls.keys() or any(len(calls) > 1 for calls in self._calls.values()):
            return None
        calls = {module: each[0] for module, each in self._calls.items()}
        layers, first, last = [calls[layer] for layer in self._layers], calls[self._layers[0]], calls[self._layers[-1]]
        norm = next((m for m, call in calls.items() if call.input is last.hidden), None)
        rotary = self._rotary(calls)
        stack = type(self._layers[0]).stack(self._layers)
        if norm is None or rotary is None or stack is None:
            return None
        followed = (
            _is_same(calls[self._embedding].input, token_B1)
            and first.input is calls[self._embedding].output
            and all(after.input is before.hidden for before, after in itertools.pairwise(layers))
            and all(call.rope is first.rope and call.positions is first.positions for call in layers)
            and all(call.mask is first.mask for call in layers)
            and not any(m.why_not_fused(calls[m].input, calls[m].args[1:], calls[m].kwargs) for m in self._layers)
            and _is_same(calls[self._head].input, calls[norm].output)
            and calls[self._head].output is logits
            and all(call.is_untouched for call in calls.values())
            and (first.mask is None or _is_of_tokens(first.mask, mask_BT))
        )
        if not followed:
            return None
        step = Step(Ends(self._embedding, norm, self._head), stack, rotary, position_B1, masked=first.mask is not None)
        rope = rotary(first.input, position_ids=first.positions) if first.rope is None else first.rope
        if not all(torch.equal(mine, theirs) for mine, theirs in zip(step.rope(first.input), rope, strict=True)):
            return None
        step.advance()
        return step

    def _rotary(self, calls: dict[nn.Module, _Call]) -> Rotary | None:
        """Who made the layers' angles; None where there are several, or nobody that was seen."""
        tables = [layer.angles() for layer in self._layers]
        if any(tables):
            return tables[0] if all(table and table.is_like(tables[0]) for table in tables) else None
        rope = calls[self._layers[0]].rope
        return next((module for module, call in calls.items() if call.output is rope), None)


def _sees_all(config: Any, longest: int | None) -> bool:
    """Whether no layer's window or chunk ends before the text does: masks of a step say nothing of later ones."""
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return all(window is None or (longest is not None and longest <= window) for window in windows)


def _is_heard(module: nn.Module) -> bool:
    """Whether someone listens to the module's calls. transformers leaves hooks behind that listen when asked only."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return "forward" in vars(module) or any(getattr(hook, "__module__", "") != _CAPTURING for hook in hooks)


def _tensors(output: Any) -> tuple[torch.Tensor, ...]:
    parts = output if isinstance(output, tuple) else (output,)
    return tuple(part for part in parts if isinstance(part, torch.Tensor))


def _is_same(a: Any, b: torch.Tensor) -> bool:
    """Whether `a` is `b`, or a view of all of it."""
    return isinstance(a, torch.Tensor) and a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.dtype == b.dtype


def _is_of_tokens(mask: torch.Tensor, mask_BT: torch.Tensor | None) -> bool:
    """Whether a layer's mask shows all tokens that count, and no others."""
    seen = visible(mask)
    if seen is None or mask_BT is None:
        return seen is not None and bool(seen.all())
    return torch.equal(seen, of_tokens(mask_BT))
