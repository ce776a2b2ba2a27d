"""The walk over a model that yields its Structure."""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn

from torch_cpullm.detect.blocks import Mismatch
from torch_cpullm.detect.layers import find_candidates, match_layer
from torch_cpullm.detect.probes import probe_linear, probe_rope
from torch_cpullm.detect.structure import (
    Dtype,
    EmbeddingStructure,
    Finding,
    LayerStructure,
    LinearStructure,
    Structure,
)

# A linear layer with fewer outputs is a router or a gate: a few rows that decide much and cost nothing.
_FEWEST_OUTPUTS = 32


def _dtype_name(dtype: torch.dtype) -> Dtype | None:
    name = str(dtype).removeprefix("torch.")
    return next((known for known in get_args(Dtype) if known == name), None)


def _why_not_linear(module: nn.Linear) -> str | None:
    weight = module.weight
    if not probe_linear(module):
        return f"{type(module).__name__} is not the plain Linear"
    if weight.device.type != "cpu":
        return f"its weight is on {weight.device.type}"
    if hasattr(module, "_hf_hook"):
        return "accelerate manages it (offload hook)"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if type(weight) not in (nn.Parameter, torch.Tensor) or _dtype_name(weight.dtype) is None:
        return f"its weight is {type(weight).__name__} of {weight.dtype}"
    if module.out_features < _FEWEST_OUTPUTS:
        return f"only {module.out_features} outputs (a router or a gate)"
    return None


def _find_linears(model: nn.Module) -> tuple[list[LinearStructure], list[Finding]]:
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if callable(find_head) else None
    embeddings = {id(m.weight): path for path, m in model.named_modules() if isinstance(m, nn.Embedding)}
    linears, findings = [], []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        reason = _why_not_linear(module)
        dtype = _dtype_name(module.weight.dtype)
        if reason or dtype is None:
            findings.append(Finding(path, type(module).__name__, reason or "unknown dtype"))
            continue
        linears.append(
            LinearStructure(
                path=path,
                out_features=module.out_features,
                in_features=module.in_features,
                dtype=dtype,
                role="head" if module is head else "projection",
                tied_to=embeddings.get(id(module.weight)),
            )
        )
    return linears, findings


def _find_token_embeddings(model: nn.Module) -> list[EmbeddingStructure]:
    """The model's input embeddings, if they are a plain table; position tables stay, they are small."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        table = find() if callable(find) else None
    except NotImplementedError:
        table = None
    if type(table) is not nn.Embedding or table.max_norm is not None or "forward" in vars(table):
        return []
    dtype = _dtype_name(table.weight.dtype)
    if dtype is None or table.weight.device.type != "cpu" or hasattr(table, "_hf_hook"):
        return []
    paths = [path for path, module in model.named_modules() if module is table]
    return [EmbeddingStructure(path, table.num_embeddings, table.embedding_dim, dtype) for path in paths[:1]]


def detect(model: nn.Module) -> Structure:
    """Describe `model`; nothing in it is changed. Costs a few small tensor operations per layer."""
    layers: list[LayerStructure] = []
    linears, findings = _find_linears(model)
    packable = {linear.path for linear in linears}
    candidates = find_candidates(model)
    rope_pairs = any(probe_rope(module) for module in model.modules())
    for candidate in candidates:
        try:
            layer, mlp_reason = match_layer(candidate, rope_pairs)
            if layer.parallel and layer.mlp is None:
                raise Mismatch(f"its MLP, which runs beside attention: {mlp_reason}")
            parts = layer.linear_paths(with_mlp=layer.parallel)
            missing = [part for part in parts if f"{candidate.path}.{part}" not in packable]
            if missing:
                raise Mismatch(f"{missing[0]} cannot be packed")
        except Mismatch as mismatch:
            findings.append(Finding(candidate.path, type(candidate.module).__name__, str(mismatch)))
            continue
        if mlp_reason:
            findings.append(Finding(f"{candidate.path}.mlp", "MLP", mlp_reason))
        layers.append(layer)
    dtypes = [linear.dtype for linear in linears]
    return Structure(
        class_name=type(model).__name__,
        dtype=max(set(dtypes), key=dtypes.count) if dtypes else "float32",
        layers=tuple(layers),
        linears=tuple(linears),
        embeddings=tuple(_find_token_embeddings(model)),
        findings=tuple(findings),
        decoder_layers=len(candidates),
        generates=hasattr(model, "_prepare_cache_for_generation")
        and not getattr(getattr(model, "config", None), "is_encoder_decoder", False),
    )
