"""Choosing codes by what they do to real text: GPTQ, one decoder layer after the other.

Each layer runs twice over the calibration windows: as it was, to sum up what reaches its linear layers, and packed, to
hand on what the next layer will really get. One layer's sums are alive at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from torch_cpullm.detect import find_candidates
from torch_cpullm.formats import WeightFormat
from torch_cpullm.modules.observe import Observer, hooked
from torch_cpullm.modules.packing import Packer, Solved
from torch_cpullm.modules.proof import ProofError, evaluating
from torch_cpullm.ops.linear import Scales
from torch_cpullm.pack.gptq import Grid, Hessian, Representable, solve
from torch_cpullm.plan import LinearPlan

Group = tuple[LinearPlan, ...]

_BLOCK, _MOST_MULTIPLIER = 256, 15  # csrc/layout/panel.h
# How far a block's scales reach beyond what its largest weight asks for when the solve comes to the block: late columns
# still move. Any number from 1 to 1.25 leaves the same error of the outputs (int4 g32, bundled model: 1.5 % above that
# of f16 scales for each group).
_HEADROOM = 1.05


class _Stop(Exception):
    """Ends a forward once the first layer's input is known."""


@dataclass(frozen=True)
class Windows:
    """Calibration windows on their way through the layers.

    Attributes:
        hidden: [1, T, D] of each window, the input of the next layer.
        kwargs: what the model passes to each layer besides, by the layer's path; equal for windows of equal length.
    """

    hidden: list[torch.Tensor]
    kwargs: dict[str, dict[str, Any]]


def _start(model: Any, ids_NT: torch.Tensor, layers: dict[str, nn.Module]) -> Windows:
    kwargs: dict[str, dict[str, Any]] = {}
    hidden: list[torch.Tensor] = []

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], given: dict[str, Any]) -> None:
            kwargs[path] = {name: value for name, value in given.items() if name != "hidden_states"}

        return hook

    def stop(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        hidden.append((args[0] if args else given["hidden_states"]).detach().clone())
        raise _Stop

    handles = [layer.register_forward_pre_hook(note(path), with_kwargs=True) for path, layer in layers.items()]
    try:
        model(input_ids=ids_NT[:1], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    handle = next(iter(layers.values())).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for window_1T in ids_NT.split(1):
            with suppress(_Stop):
                model(input_ids=window_1T, use_cache=False)
    finally:
        handle.remove()
    if set(kwargs) != set(layers) or len(hidden) != len(ids_NT):
        raise ProofError("the model's forward does not call its layers one by one")
    return Windows(hidden, kwargs)


def _run(layer: nn.Module, hidden_1TD: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    out = layer(hidden_1TD, **kwargs)
    result: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return result


def storable(format: WeightFormat) -> Representable:
    """Rounding of scales to what the packed layout holds (csrc/layout/panel.h).

    Without groups float32; with them 11 bits, or with two levels whole multiples of a step of 11 bits.
    """
    if not format.group:
        return lambda _, scale_N1: scale_N1
    if not format.two_levels:
        return lambda _, scale_N1: _eleven_bits(scale_N1)

    def multiples(largest_N1: torch.Tensor, scale_N1: torch.Tensor) -> torch.Tensor:
        step_N1 = _eleven_bits(largest_N1 * (_HEADROOM / (8 * _MOST_MULTIPLIER)))
        size_N1 = (scale_N1.abs() / step_N1).round_().clamp_(1, _MOST_MULTIPLIER)
        return torch.where(step_N1 > 0, size_N1 * step_N1 * scale_N1.sign(), 0.0)

    return multiples


def _eleven_bits(x: torch.Tensor) -> torch.Tensor:
    fraction, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(fraction * 2048.0) / 2048.0, exponent)


def grid_of(format: WeightFormat) -> Grid:
    """The codes of a format, and the columns whose scales are stored together."""
    if format.codes == "int8":
        return Grid(-127, 127, symmetric=True)
    return Grid(0, 15, symmetric=False) if format.asymmetric else Grid(-8, 7, symmetric=True, span=_BLOCK)


class Calibration:
    """Solves the linear layers inside a model's decoder layers on calibration windows.

    Args:
        model: runs on token ids; changed in place by `packer`.
        ids_NT: windows of equal length.

    Raises:
        ProofError: the model does not run its layers one by one.
    """

    def __init__(self, model: nn.Module, ids_NT: torch.Tensor) -> None:
        self._model, self._ids_NT = model, ids_NT
        self._layers = {candidate.path: candidate.module for candidate in find_candidates(model)}

    def pack_layers(self, groups: list[Group], packer: Packer) -> list[Group]:
        """Pack the groups that lie in decoder layers; returns the others."""
        if not self._layers:
            raise ProofError("the model has no list of decoder layers")
        with evaluating(self._model):
            windows = _start(self._model, self._ids_NT, self._layers)
            for path, layer in self._layers.items():
                inside = [group for group in groups if group[0].structure.path.startswith(f"{path}.")]
                groups = [group for group in groups if group not in inside]
                self._pack_layer(layer, windows, windows.kwargs[path], inside, packer)
        return groups

    def _pack_layer(
        self,
        layer: nn.Module,
        windows: Windows,
        kwargs: dict[str, Any],
        groups: list[Group],
        packer: Packer,
    ) -> None:
        leaders = {group[0].structure.path: group[0].structure.in_features for group in groups if group[0].format}
        hessians = {path: Hessian(depth) for path, depth in leaders.items()}
        observer = Observer()

        def visit(path: str, x_MK: torch.Tensor) -> None:
            hessians[path].add(x_MK)
            observer.visit(path, x_MK)

        with hooked({path: self._model.get_submodule(path) for path in leaders}, visit):
            for hidden_1TD in windows.hidden:
                _run(layer, hidden_1TD, kwargs)
        for group in groups:
            hessian = hessians.pop(group[0].structure.path, None)
            packer.pack(group, observer.seen, partial(_solve, hessian))
        for index, hidden_1TD in enumerate(windows.hidden):
            windows.hidden[index] = _run(layer, hidden_1TD, kwargs)
        for group in groups:
            packer.cut(group)


def _solve(
    hessian: Hessian | None, linear: LinearPlan, module: nn.Linear, multiplier_K: torch.Tensor | None
) -> Solved | None:
    format = linear.format
    if hessian is None or hessian.rows == 0 or format is None or not bool(module.weight.isfinite().all()):
        return None
    weight_NK, matrix_KK = module.weight.detach().float(), hessian.matrix_KK
    if multiplier_K is not None:
        weight_NK = weight_NK / multiplier_K
        matrix_KK = matrix_KK * multiplier_K[:, None] * multiplier_K
    solution = solve(weight_NK, matrix_KK, grid_of(format), format.group, storable(format))
    value_NK = solution.weight_NK if multiplier_K is None else solution.weight_NK * multiplier_K
    return Solved(value_NK, Scales(solution.scale_NG, solution.zero_NG if format.asymmetric else None))
