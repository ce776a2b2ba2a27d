"""The decisions, one function each, and the Plan they add up to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch_cpullm.config import Config
from torch_cpullm.detect.structure import Dtype, EmbeddingStructure, LayerStructure, LinearStructure, Structure
from torch_cpullm.formats import BF16, F32, INT8, KvFormat, WeightFormat

# float16 is no packed format: float32 would double its bytes, and the other two would not keep its values.
_KEPT: dict[Dtype, WeightFormat | None] = {"float32": F32, "bfloat16": BF16, "float16": None}
_KEPT_KV: dict[Dtype, KvFormat] = {"float32": "f32", "bfloat16": "bf16", "float16": "f32"}


@dataclass(frozen=True)
class LinearPlan:
    """One linear layer: the format to pack it in, or None to leave it alone."""

    structure: LinearStructure
    format: WeightFormat | None
    reason: str


@dataclass(frozen=True)
class EmbeddingPlan:
    """One table of embeddings: its format, or None; `shared_with` names the linear layer whose bytes it reads."""

    structure: EmbeddingStructure
    format: WeightFormat | None
    shared_with: str | None
    reason: str


@dataclass(frozen=True)
class LayerPlan:
    """One decoder layer: which halves become fused ops."""

    structure: LayerStructure
    fuse_attention: bool
    fuse_mlp: bool
    reason: str


@dataclass(frozen=True)
class KvPlan:
    """The cache: the pool's format, or None for transformers' own."""

    format: KvFormat | None
    reason: str


@dataclass(frozen=True)
class Plan:
    """Everything swap() will do, and why."""

    structure: Structure
    config: Config
    linears: tuple[LinearPlan, ...]
    embeddings: tuple[EmbeddingPlan, ...]
    layers: tuple[LayerPlan, ...]
    kv: KvPlan

    def __repr__(self) -> str:
        """Say in one line what is planned; a proof or a check may still leave parts alone."""
        packed = [str(linear.format) for linear in self.linears if linear.format]
        return (
            f"Plan({self.structure.class_name}: "
            f"{len(packed)} linear layers in {'/'.join(sorted(set(packed))) or 'nothing'}, "
            f"{sum(layer.fuse_attention for layer in self.layers)} attention and "
            f"{sum(layer.fuse_mlp for layer in self.layers)} MLP blocks fused, KV {self.kv.format or 'as it is'})"
        )

    def input_groups(self) -> list[tuple[LinearPlan, ...]]:
        """The linear layers, those together that share their input and so must agree in how it is prepared."""
        by_path = {linear.structure.path: linear for linear in self.linears}
        groups: list[tuple[LinearPlan, ...]] = []
        for layer in self.structure.layers:
            parts = [(layer.attention.path, layer.attention.qkv)]
            parts += [(layer.mlp.path, layer.mlp.gate_up)] if layer.mlp else []
            for parent, names in parts:
                paths = [f"{layer.path}.{parent}.{name}" for name in names]
                if all(path in by_path for path in paths):
                    groups.append(tuple(by_path.pop(path) for path in paths))
        groups += [(linear,) for linear in by_path.values()]
        order = {linear.structure.path: index for index, linear in enumerate(self.linears)}
        return sorted(groups, key=lambda group: order[group[0].structure.path])

    def without(self, kind: tuple[object, ...], reason: str) -> Plan:
        """The plan with all layers of one kind left alone: what a failed proof leads to."""
        layers = tuple(
            replace(layer, fuse_attention=False, fuse_mlp=False, reason=reason)
            if layer.structure.kind() == kind
            else layer
            for layer in self.layers
        )
        return _consistent(replace(self, layers=layers))


def _format_of(choice: Literal["int8", "int4", "bf16"], config: Config) -> WeightFormat:
    if choice == "bf16":
        return BF16
    default = 32 if choice == "int4" else 0
    group = config.group_size if choice == config.weights and config.group_size is not None else default
    return WeightFormat(choice, config.activations, group, choice == "int4" and not config.symmetric)


def choose_linear_format(linear: LinearStructure, config: Config) -> tuple[WeightFormat | None, str]:
    """Pick one layer's format: what its role was configured to, or what its dtype allows to keep."""
    choice, name = config.weights, "weights"
    if linear.role == "head" and (config.lm_head or config.weights == "int4"):
        choice, name = config.lm_head or "int8", "lm_head"
    if choice != "keep":
        return _format_of(choice, config), f"{name}={choice!r}"
    kept = _KEPT[linear.dtype]
    if kept is None:
        return None, f"{name}='keep': no packed format keeps {linear.dtype} exactly; use 'bf16' or 'int8'"
    return kept, f"{name}='keep': same values, re-laid"


def choose_embedding(embedding: EmbeddingStructure, linears: tuple[LinearPlan, ...], config: Config) -> EmbeddingPlan:
    """INT8 beside quantised weights. A head that is tied to the table holds the bytes for both where it can."""
    choice = config.embeddings or ("int8" if config.quantized else "keep")
    wanted = INT8 if choice == "int8" else _KEPT[embedding.dtype]
    for linear in linears:
        path, format = linear.structure.path, linear.format
        if linear.structure.tied_to == embedding.path and wanted and format and format.codes == wanted.codes:
            return EmbeddingPlan(embedding, format, path, f"tied to {path}")
    if choice == "keep":
        return EmbeddingPlan(embedding, None, None, "embeddings='keep'")
    return EmbeddingPlan(embedding, INT8, None, "embeddings='int8'")


def choose_layer(layer: LayerStructure, formats: dict[str, WeightFormat | None], config: Config) -> LayerPlan:
    """Fuse a half when its weights are packed, in one format where they share their input."""

    def packed_together(parent: str, names: tuple[str, ...]) -> bool:
        found = {formats.get(f"{layer.path}.{parent}.{name}") for name in names}
        return len(found) == 1 and None not in found

    attention, mlp = layer.attention, layer.mlp
    fuse_attention = (
        config.attention == "slim"
        and packed_together(attention.path, attention.qkv)
        and packed_together(attention.path, (attention.output,))
    )
    fuse_mlp = mlp is not None and packed_together(mlp.path, mlp.gate_up) and packed_together(mlp.path, (mlp.down,))
    if config.attention == "keep":
        reason = "attention='keep'"
    else:
        reason = "structure matches" if fuse_attention else "its projections are not all packed in one format"
    return LayerPlan(layer, fuse_attention, fuse_mlp, reason)


def choose_kv(structure: Structure, layers: tuple[LayerPlan, ...], config: Config) -> KvPlan:
    """Use the paged pool only where every reader of the cache is one of our attention blocks."""
    if not structure.generates:
        return KvPlan(None, "the model has no decoder cache of the usual kind")
    fused = sum(layer.fuse_attention for layer in layers)
    if config.attention == "keep":
        return KvPlan(None, "attention='keep'")
    if fused == 0 or fused != structure.decoder_layers:
        return KvPlan(
            None, f"{fused} of {structure.decoder_layers} decoder layers have fused attention; a pool needs all"
        )
    if config.kv_cache == "keep":
        return KvPlan(_KEPT_KV[structure.dtype], f"kv_cache='keep': {structure.dtype}")
    return KvPlan(config.kv_cache, f"kv_cache={config.kv_cache!r}")


def _consistent(plan: Plan) -> Plan:
    """Without a pool there is nothing the fused attention could write to: then no layer's attention is fused."""
    kv = choose_kv(plan.structure, plan.layers, plan.config)
    layers = plan.layers
    if kv.format is None:
        layers = tuple(
            replace(layer, fuse_attention=False, reason=kv.reason) if layer.fuse_attention else layer
            for layer in layers
        )
    return replace(plan, layers=layers, kv=kv)


def make_plan(structure: Structure, config: Config) -> Plan:
    """Decide everything; nothing is computed and nothing touched."""
    linears = tuple(LinearPlan(linear, *choose_linear_format(linear, config)) for linear in structure.linears)
    formats = {linear.structure.path: linear.format for linear in linears}
    layers = tuple(choose_layer(layer, formats, config) for layer in structure.layers)
    embeddings = tuple(choose_embedding(embedding, linears, config) for embedding in structure.embeddings)
    return _consistent(Plan(structure, config, linears, embeddings, layers, KvPlan(None, "")))
