"""The only file that changes the user's model, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torch_cpullm.errors import UnsupportedModelError
from torch_cpullm.generate.model import GeneratingModel, generating_class
from torch_cpullm.generate.ranks import Ranks
from torch_cpullm.modules import attention
from torch_cpullm.modules.embedding import PackedEmbedding
from torch_cpullm.modules.fork import make_forks_safe
from torch_cpullm.modules.joined import join_heads, require_same_model
from torch_cpullm.modules.layer import FusedLayer, fuse_layer
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.modules.packing import Progress
from torch_cpullm.modules.proof import ProofError, prove_logits, trial_logits
from torch_cpullm.modules.proven import proven
from torch_cpullm.modules.weights import pack_weights
from torch_cpullm.plan import LayerPlan, Plan
from torch_cpullm.plan.explain import Explanation, Row

STATE = "_cpullm_state"
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass
class Swapped:
    """What an optimised model remembers about itself; kept in the attribute STATE.

    `group`: of the ranks that share it, 0 where there are none.
    """

    plan: Plan
    explanation: Explanation
    attention_before: str | None
    group: int


def state_of(model: nn.Module) -> Swapped | None:
    """The state of an optimised model, None of any other."""
    state = vars(model).get(STATE)
    return state if isinstance(state, Swapped) else None


def require_state(model: nn.Module) -> Swapped:
    """The state. Raises UnsupportedModelError for a model that is not optimised."""
    state = state_of(model)
    if state is None:
        raise UnsupportedModelError("model: expected one that optimize() has returned, got one that is not optimised")
    return state


def require_whole(model: nn.Module) -> Swapped:
    """The state. Raises UnsupportedModelError for a model that is a rank's part, and for one that is not optimised."""
    state = require_state(model)
    if state.plan.is_partial:
        raise UnsupportedModelError(
            f"model: expected a whole one, got the part of rank {state.plan.shard.rank} of {state.plan.shard.size}; "
            "save or restore it before it is shared (optimize it without torch_cpullm.distributed.init())"
        )
    return state


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared storages once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"}
    return sum(storages.values())


def _layers_with_packed_weights(model: nn.Module, plan: Plan) -> Plan:
    """A layer loses its fusion when the check kept one of its weights from being packed."""
    for layer in plan.layers:
        structure = layer.structure
        for name in structure.linear_paths(layer.fuse_mlp):
            module = model.get_submodule(f"{structure.path}.{name}")
            if layer.fuse_attention and not isinstance(module, PackedLinear):
                plan = plan.without(structure.kind(), f"{structure.path}.{name} could not be packed")
    return plan


def _set_attention(model: Any, name: str) -> None:
    """Choose the attention function by its name; raises ProofError when transformers refuses."""
    try:
        model.set_attn_implementation(name)
    except (ValueError, AttributeError, ImportError, NotImplementedError) as error:
        raise ProofError(f"transformers refused: {error}") from error


def _try_slim_attention(model: Any, check: bool) -> None:
    """Switch to our attention function; raises ProofError when the model ignores it or its logits change."""
    if not getattr(model, "_supports_attention_backend", False):
        raise ProofError("it does not choose its attention by name")
    before = trial_logits(model) if check else None
    calls_before = attention.calls()
    _set_attention(model, attention.NAME)
    if before is None:
        return
    after = trial_logits(model)
    if attention.calls() == calls_before:
        raise ProofError("it does not call the attention function it was given")
    prove_logits(before, after, next(model.parameters()).dtype)


def _use_slim_attention(model: nn.Module, plan: Plan, before: str | None) -> str:
    """Returns what explain() says about it; the model's own choice is back where ours could not be proven."""
    if plan.config.attention == "keep" or before is None:
        return "the model's own (attention='keep')" if before is not None else "none to choose"
    attention.register()
    try:
        _try_slim_attention(model, plan.config.check)
    except ProofError as failure:
        if getattr(model.config, "_attn_implementation", None) == attention.NAME:
            _set_attention(model, before)
        return f"the model's own ({failure})"
    return "slim"


def swap(
    model: nn.Module,
    plan: Plan,
    progress: Progress | None = None,
    calibration_NT: torch.Tensor | None = None,
    group: int = 0,
) -> Explanation:
    """Do what the plan says, in place; prove first where its config asks for it. Returns what was done.

    Args:
        model: changed.
        plan: for all of the model, or for a rank's shard.
        progress: of packing.
        calibration_NT: token ids.
        group: of the ranks that share the model; 0: whoever calls brings the terms of all ranks together.

    Raises:
        RankError: another rank has packed another model, or the same one otherwise.
    """
    make_forks_safe()
    before = weight_bytes(model)
    attention_before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    notes = [f"attention: {_use_slim_attention(model, plan, attention_before)}"]
    if plan.config.check:
        plan = proven(model, plan)
    rows, fault = pack_weights(model, plan, calibration_NT, progress)
    if fault:
        notes.append(f"calibration texts were not used for all layers: {fault}")
    plan = _layers_with_packed_weights(model, plan)
    fused, per_token_before, per_token = fuse(model, plan, group)
    rows += fused
    rows += [Row(f.path, f.class_name, "left alone", 0, 0, f.reason) for f in plan.structure.findings]
    notes += plan.sharing
    notes.append(f"KV cache: {plan.kv.format or 'as it was'} ({plan.kv.reason})")
    if plan.config.sampler == "fused" and plan.kv.format is None:
        notes.append("sampler: transformers' own; the fused one needs our decode loop, and so the paged cache")
    if not plan.config.check:
        notes.append("check=False: nothing was proven")
    explanation = Explanation(
        model=plan.structure.class_name,
        swapped=tuple(row for row in rows if row.action != "left alone"),
        left_alone=tuple(row for row in rows if row.action == "left alone"),
        weight_bytes_before=before,
        weight_bytes_after=weight_bytes(model),
        kv_bytes_per_token=per_token,
        kv_bytes_per_token_before=per_token_before,
        notes=tuple(notes),
    )
    vars(model)[STATE] = Swapped(plan, explanation, attention_before, group)
    return explanation


def fuse(model: nn.Module, plan: Plan, group: int) -> tuple[list[Row], float, float]:
    """Fuse the layers and page the cache of a model whose weights are packed.

    Returns:
        The rows of explain(), and the cache's bytes per token before and now.
    """
    rows = [_fuse_one(model, layer, plan, group) for layer in plan.layers]
    if group:
        require_same_model(model, plan, group)
        join_heads(model, plan, group)
    return rows, *_lead_generate(model, plan, group)


def attach(model: nn.Module, plan: Plan, explanation: Explanation, slim: bool, group: int = 0) -> None:
    """Make a model whose weights are packed what `swap` had made of the one that the plan and the rest come from."""
    make_forks_safe()
    attention_before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if slim:
        attention.register()
        _set_attention(model, attention.NAME)
    plan = _layers_with_packed_weights(model, plan)
    fuse(model, plan, group)
    vars(model)[STATE] = Swapped(plan, explanation, attention_before, group)


def _fuse_one(model: nn.Module, layer: LayerPlan, plan: Plan, group: int) -> Row:
    structure = layer.structure
    if not layer.fuse_attention or plan.kv.format is None:
        return Row(structure.path, structure.class_name, "left alone", 0, 0, layer.reason)
    fuse_layer(model.get_submodule(structure.path), layer, plan.kv.format, group)
    action = "fused attention + MLP" if layer.fuse_mlp else "fused attention"
    return Row(structure.path, structure.class_name, action, 0, 0, layer.reason)


def _lead_generate(model: nn.Module, plan: Plan, group: int) -> tuple[float, float]:
    """Swap the model's class where there is a pool, or ranks keep step; returns KV bytes per token before and now."""
    element = _ELEMENT_BYTES[plan.structure.dtype]
    shapes = [(layer.structure.attention.kv_heads, layer.structure.attention.channels) for layer in plan.layers]
    before = float(sum(2 * heads * channels * element for heads, channels in shapes))
    paged = plan.kv.format is not None
    if not paged and not (group and hasattr(model, "generate")):
        return before, before
    layers = sorted(plan.layers if paged else (), key=lambda layer: layer.structure.attention.layer_index)
    specs = [vars(model.get_submodule(layer.structure.path))["_cpullm"].spec for layer in layers]
    model.__class__ = generating_class(type(model))
    vars(model)["_cpullm_kv"] = specs
    vars(model)["_cpullm_layers"] = tuple(layer.structure.path for layer in layers)
    vars(model)["_cpullm_sampler"] = plan.config.sampler if paged else "transformers"
    vars(model)["_cpullm_ranks"] = Ranks(plan.shard.rank, plan.shard.size, group) if group else None
    from torch_cpullm.ops.attention import PAGE_TOKENS

    return before, sum(spec.page_bytes for spec in specs) / PAGE_TOKENS if paged else before


def _swapped_modules(model: nn.Module) -> Iterator[nn.Module]:
    yield from (module for module in model.modules() if isinstance(module, (PackedLinear, PackedEmbedding, FusedLayer)))


def unswap(model: Any) -> set[str]:
    """Put the original classes back, weights dequantised. Returns the formats that some weight was rounded to."""
    if state_of(model) is None:
        return set()
    state = require_whole(model)
    lossy = set()
    swapped = list(_swapped_modules(model))
    # Tables first: a tied head takes its weight from the table, which reads it from the head's bytes.
    for module in sorted(swapped, key=lambda module: not isinstance(module, PackedEmbedding)):
        if isinstance(module, (PackedLinear, PackedEmbedding)):
            if module._packed_state.lossy:
                lossy.add(str(module._packed_state.format))
            module.give_back()
        else:
            module.__class__ = type(module).__mro__[2]
            vars(module).pop("_cpullm", None)
    if isinstance(model, GeneratingModel):
        model.__class__ = type(model).__mro__[2]
        for name in ("_cpullm_kv", "_cpullm_layers", "_cpullm_sampler", "_cpullm_ranks"):
            vars(model).pop(name, None)
    if state.attention_before is not None and model.config._attn_implementation == attention.NAME:
        _set_attention(model, state.attention_before)
    vars(model).pop(STATE, None)
    return lossy
