"""A plan after its proofs: layers are described as they were found, and fused where a trial has shown it right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from torch import nn

from torch_cpullm.detect import LayerStructure
from torch_cpullm.formats import F32
from torch_cpullm.modules.layer import fuse_layer
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.modules.proof import ProofError, Recording, prove_layer, record_calls
from torch_cpullm.pack import pack_linear
from torch_cpullm.plan import LayerPlan, Plan
from torch_cpullm.plan.shard import EVERYTHING


def proven(model: nn.Module, plan: Plan) -> Plan:
    """The plan without the layers whose fused twin does not give what the original gives."""
    kinds: dict[tuple[object, ...], LayerPlan] = {}
    for layer in plan.layers:
        if layer.fuse_attention:
            kinds.setdefault(layer.structure.kind(), layer)
    if not kinds:
        return plan
    try:
        recordings = record_calls(model, [layer.structure.path for layer in kinds.values()])
    except ProofError as failure:
        for kind in kinds:
            plan = plan.without(kind, str(failure))
        return plan
    for kind, layer in kinds.items():
        recorded = recordings[layer.structure.path]
        fault = ""
        # Some models have layers that leave rope out, and nothing else tells.
        for change in (_as_recorded(recorded), _unrotated(recorded)):
            why = _why_unproven(model, replace(layer, structure=change(layer.structure)), recorded)
            if why is None:
                plan = plan.amended(kind, change)
                break
            fault = fault or why
        else:
            plan = plan.without(kind, fault)
    return plan


def _as_recorded(recorded: Recording) -> Callable[[LayerStructure], LayerStructure]:
    return lambda structure: replace(structure, returns_tuple=recorded.returns_tuple)


def _unrotated(recorded: Recording) -> Callable[[LayerStructure], LayerStructure]:
    return lambda structure: _as_recorded(recorded)(structure).unrotated()


def _fuse_trial(plan: LayerPlan) -> Callable[[nn.Module], Any]:
    """For a proof: pack a copy's linear layers in float32 and fuse it."""

    def fuse(copy: nn.Module) -> Any:
        for path in plan.structure.linear_paths(plan.fuse_mlp):
            linear = cast("nn.Linear", copy.get_submodule(path))
            PackedLinear.take_over(linear, pack_linear(linear, F32), F32, None)
        return fuse_layer(copy, replace(plan, share=EVERYTHING), "f32").spec

    return fuse


def _why_unproven(model: nn.Module, layer: LayerPlan, recorded: Recording) -> str | None:
    try:
        prove_layer(model.get_submodule(layer.structure.path), layer.structure, recorded.calls, _fuse_trial(layer))
    except ProofError as failure:
        return str(failure)
    return None
