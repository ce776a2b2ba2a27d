"""An optimised model as names, numbers and tensors, and the way back to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from torch_cpullm.detect.probes import probe_linear
from torch_cpullm.detect.structure import Dtype
from torch_cpullm.errors import StoredModelError, UnsupportedModelError
from torch_cpullm.formats import WeightFormat
from torch_cpullm.machine import MappedFiles
from torch_cpullm.modules import attention
from torch_cpullm.modules.cut import cut_packed, explain_cut
from torch_cpullm.modules.embedding import PackedEmbedding
from torch_cpullm.modules.joined import own_shard
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.modules.packed import PackedModule
from torch_cpullm.modules.swap import attach, require_whole
from torch_cpullm.ops.linear import copy_packed, packed_info
from torch_cpullm.pack.store import Tensors
from torch_cpullm.plan import Plan
from torch_cpullm.plan.explain import Explanation


@dataclass(frozen=True)
class StoredModule:
    """A packed linear layer or table of embeddings.

    Attributes:
        format: of the bytes.
        dtype: the weight reads in.
        trainable: whether the weight was.
        tied_to: of a linear layer, the module whose weight was this one.
        owner: of a table, the linear layer whose bytes it reads.
        multiplied: whether factors that were taken out of the weight belong to it.
    """

    format: WeightFormat
    dtype: Dtype
    trainable: bool
    tied_to: str | None
    owner: str | None
    multiplied: bool


@dataclass(frozen=True)
class StoredModel:
    """All of an optimised model but its tensors and its transformers configuration."""

    architecture: str
    dtype: Dtype
    slim_attention: bool
    modules: dict[str, StoredModule]
    plan: Plan
    explanation: Explanation


def describe(model: PreTrainedModel) -> tuple[StoredModel, Tensors]:
    """What `build` needs to make the model again; the tensors are the model's own.

    Raises:
        UnsupportedModelError: the model is not optimised, is a rank's part, or its class is not one of transformers'.
    """
    state = require_whole(model)
    architecture = type(model).__name__
    if _class_named(architecture, UnsupportedModelError) not in type(model).__mro__:
        raise UnsupportedModelError(f"model: expected a class of transformers, got another one named {architecture!r}")
    paths = {id(module): path for path, module in model.named_modules()}
    modules: dict[str, StoredModule] = {}
    tensors = Tensors({}, {}, _unpacked(model))
    for path, module in model.named_modules():
        if not isinstance(module, PackedModule):
            continue
        packed = module._packed_state
        modules[path] = StoredModule(
            packed.format,
            _name_of(packed.dtype),
            packed.trainable,
            paths[id(packed.tied[0])] if packed.tied else None,
            paths[id(packed.owner[0])] if packed.owner else None,
            packed.multiplier_K is not None,
        )
        if not packed.owner:
            tensors.packed[path] = module.packed
        if packed.multiplier_K is not None:
            tensors.multipliers[path] = packed.multiplier_K
    slim = getattr(model.config, "_attn_implementation", None) == attention.NAME
    stored = StoredModel(architecture, _name_of(model.dtype), slim, modules, state.plan, state.explanation)
    return stored, tensors


def build(stored: StoredModel, config: PreTrainedConfig, tensors: Tensors) -> PreTrainedModel:
    """The model again, with `tensors` as its memory: nothing is copied, but what ranks have a part of.

    Raises:
        StoredModelError: names, shapes or formats do not fit the architecture.
        UnsupportedModelError: ranks cannot share weights in its formats.
    """
    kind = _class_named(stored.architecture, StoredModelError)
    if kind.config_class is None or not isinstance(config, kind.config_class):
        raise StoredModelError(
            f"config.json: expected the configuration of a {stored.architecture}, got a {type(config).__name__}"
        )
    # Parameters without memory; buffers that no file holds, such as rope's frequencies, are computed as ever.
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = kind._from_config(config, dtype=getattr(torch, stored.dtype))
    fill(model, stored, tensors)
    _assign(model, tensors.other)
    finish(model, stored, MappedFiles.under(tensors.packed.values()).release)
    model.eval()
    return model


def fill(model: nn.Module, stored: StoredModel, tensors: Tensors) -> None:
    """Give the modules that were packed their bytes; the rest of `model` is left as it is.

    Raises:
        StoredModelError: names, shapes or formats do not fit.
    """
    for path, module in sorted(stored.modules.items(), key=lambda item: item[1].owner is not None):
        _take_over(model, path, module, tensors.packed, tensors.multipliers.get(path))
    unused = (set(tensors.packed) | set(tensors.multipliers)) - set(stored.modules)
    if unused:
        raise StoredModelError(f"packed weights: expected those of the record, got others: {_some(unused)}")


def finish(model: nn.Module, stored: StoredModel, after_each: Callable[[], None]) -> None:
    """Fuse the layers of a model that has all its tensors, or on one of several ranks what it is to have of them.

    Args:
        model: `fill` has filled it.
        stored: what it was.
        after_each: called when a rank needs a whole weight no more.

    Raises:
        StoredModelError: the plan does not fit it.
        UnsupportedModelError: ranks cannot share weights in its formats.
    """
    shard, group = own_shard()
    plan, explanation = stored.plan, stored.explanation
    try:
        if group:
            plan = cut_packed(model, plan, shard, after_each)
            explanation = explain_cut(explanation, model, plan)
        attach(model, plan, explanation, stored.slim_attention, group)
    except AttributeError as error:
        raise StoredModelError(f"plan: expected parts of {stored.architecture}, got others ({error})") from error


def copy_weights(model: nn.Module, after_each: Callable[[], None]) -> None:
    """Move packed weights out of a mapped file, one after the other, to memory of this process on huge pages.

    A rank's parts are there already: cutting has put them there.
    """
    for module in model.modules():
        if isinstance(module, PackedModule) and module.is_whole and module._buffers.get("packed") is not None:
            module.register_buffer("packed", copy_packed(module.packed), persistent=False)
            after_each()


def _unpacked(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers, tied ones once; weights that are packed are no parameters."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{path}.{name}" if path else name] = buffer
    return found


def _class_named(name: str, error: type[Exception]) -> type[PreTrainedModel]:
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise error(f"model: expected a class of transformers, got {name!r}, which this version of it does not have")
    return kind


def _name_of(dtype: torch.dtype) -> Dtype:
    return cast("Dtype", str(dtype).removeprefix("torch."))


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise StoredModelError(f"{path}: expected a module of {type(model).__name__}, got none of that name") from error


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _take_over(
    model: nn.Module,
    path: str,
    stored: StoredModule,
    packed: dict[str, torch.Tensor],
    multiplier_K: torch.Tensor | None,
) -> None:
    """Give a plain module its packed weight. Tables that share a head's bytes come after the head."""
    module = _module(model, path)
    if type(module) is not nn.Embedding and not probe_linear(module):
        raise StoredModelError(f"{path}: expected a Linear or an Embedding, got a {type(module).__name__}")
    owner = None if stored.owner is None else _module(model, stored.owner)
    if stored.owner is None and path not in packed:
        raise StoredModelError(f"{path}: expected its packed weight in the file, got none")
    if owner is not None and not (isinstance(owner, PackedLinear) and isinstance(module, nn.Embedding)):
        raise StoredModelError(f"{path}: expected a table that reads a packed Linear's bytes, got {stored.owner}")
    source = packed[path] if owner is None else owner.bytes
    _check_fits(path, module, source, stored.format, multiplier_K)
    weight = cast("torch.Tensor", module.weight).detach().to(getattr(torch, stored.dtype))
    module.weight = nn.Parameter(weight, requires_grad=stored.trainable)
    if isinstance(module, nn.Embedding):
        PackedEmbedding.take_over(module, source if owner is None else owner, stored.format)
    elif isinstance(module, nn.Linear):
        tied = None if stored.tied_to is None else _module(model, stored.tied_to)
        PackedLinear.take_over(module, source, stored.format, tied, multiplier_K)


def _check_fits(
    path: str, module: nn.Module, packed: torch.Tensor, format: WeightFormat, multiplier_K: torch.Tensor | None
) -> None:
    try:
        info = packed_info(packed)
    except (ValueError, TypeError) as error:
        raise StoredModelError(f"{path}: {error}") from error
    found: tuple[Any, ...] = (info.out_features, info.in_features, str(info.format))
    expected: tuple[Any, ...] = (*cast("torch.Tensor", module.weight).shape, str(format))
    if isinstance(module, nn.Linear):
        found = (*found, info.has_bias, info.has_multiplier)
        expected = (*expected, module.bias is not None, multiplier_K is not None)
    if found != expected:
        raise StoredModelError(f"{path}: expected outputs, inputs, format (bias, multiplier) {expected}, got {found}")


def _assign(model: nn.Module, other: dict[str, torch.Tensor]) -> None:
    """Put parameters and persistent buffers in place: all that there are, and no others."""
    expected = _unpacked(model)
    if set(other) != set(expected):
        missing, unknown = set(expected) - set(other), set(other) - set(expected)
        what = [f"without {_some(missing)}"] * bool(missing) + [f"with {_some(unknown)}"] * bool(unknown)
        raise StoredModelError(f"weights: expected those of {type(model).__name__}, got a file {' and '.join(what)}")
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, tensor in other.items():
        if tensor.shape != expected[name].shape:
            raise StoredModelError(f"{name}: expected shape {tuple(expected[name].shape)}, got {tuple(tensor.shape)}")
        parent, _, last = name.rpartition(".")
        module = model.get_submodule(parent)
        if name in trainable:
            setattr(module, last, nn.Parameter(tensor, requires_grad=trainable[name]))
        else:
            module.register_buffer(last, tensor)
