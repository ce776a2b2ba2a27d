"""The decisions, one function each, and the Plan they add up to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from torch_cpullm.config import Config
from torch_cpullm.detect.structure import (
    LEFT_OUT,
    Dtype,
    EmbeddingStructure,
    LayerStructure,
    LinearStructure,
    Structure,
)
from torch_cpullm.formats import BF16, F32, INT8, KvFormat, WeightFormat
from torch_cpullm.plan.divide import Division, Piece, divide_head, divide_layer
from torch_cpullm.plan.shard import ALONE, BLOCK, EVERYTHING, Part, Shard, Share, cuttable

# float16 is no packed format: float32 would double its bytes, and the other two would not keep its values.
_KEPT: dict[Dtype, WeightFormat | None] = {"float32": F32, "bfloat16": BF16, "float16": None}
_KEPT_KV: dict[Dtype, KvFormat] = {"float32": "f32", "bfloat16": "bf16", "float16": "f32"}


@dataclass(frozen=True)
class LinearPlan:
    """One linear layer: the format to pack it in, or None to leave it alone; `part` is a rank's, None the whole."""

    structure: LinearStructure
    format: WeightFormat | None
    reason: str
    part: Part | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True)
class EmbeddingPlan:
    """One table of embeddings: its format, or None; `shared_with` names the linear layer whose bytes it reads."""

    structure: EmbeddingStructure
    format: WeightFormat | None
    shared_with: str | None
    reason: str


@dataclass(frozen=True)
class LayerPlan:
    """One decoder layer: which halves become fused ops, and what a rank has of them."""

    structure: LayerStructure
    fuse_attention: bool
    fuse_mlp: bool
    reason: str
    share: Share = field(default=EVERYTHING, metadata=LEFT_OUT)


@dataclass(frozen=True)
class KvPlan:
    """The cache: the pool's format, or None for transformers' own."""

    format: KvFormat | None
    reason: str


@dataclass(frozen=True)
class Plan:
    """Everything swap() will do, and why. `sharing` says what a rank has of the model, for explain()."""

    structure: Structure
    config: Config
    linears: tuple[LinearPlan, ...]
    embeddings: tuple[EmbeddingPlan, ...]
    layers: tuple[LayerPlan, ...]
    kv: KvPlan
    shard: Shard = field(default=ALONE, metadata=LEFT_OUT)
    sharing: tuple[str, ...] = field(default=(), metadata=LEFT_OUT)

    def __repr__(self) -> str:
        """Say in one line what is planned; a proof or a check may still leave parts alone."""
        packed = [str(linear.format) for linear in self.linears if linear.format]
        return (
            f"Plan({self.structure.class_name}: "
            f"{len(packed)} linear layers in {'/'.join(sorted(set(packed))) or 'nothing'}, "
            f"{sum(layer.fuse_attention for layer in self.layers)} attention and "
            f"{sum(layer.fuse_mlp for layer in self.layers)} MLP blocks fused, KV {self.kv.format or 'as it is'})"
        )

    @property
    def is_partial(self) -> bool:
        """Whether the model will be a rank's part, which cannot run, be read or be written as the whole."""
        return any(linear.part is not None for linear in self.linears)

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

    def amended(self, kind: tuple[object, ...], change: Callable[[LayerStructure], LayerStructure]) -> Plan:
        """The plan with all layers of one kind as a proof has found that they are."""
        layers = tuple(
            replace(layer, structure=change(layer.structure)) if layer.structure.kind() == kind else layer
            for layer in self.layers
        )
        return replace(self, layers=layers)

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
        shared = linear.structure.tied_to == embedding.path and linear.part is None
        if shared and wanted and format and format.codes == wanted.codes:
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
    elif layer.parallel:  # one op computes both, or none
        fuse_attention = fuse_mlp = fuse_attention and fuse_mlp
        reason = "structure matches, " if fuse_attention else "its projections are not all packed in one format, "
        reason += "attention and MLP in parallel"
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


def choose_linear(linear: LinearStructure, config: Config, piece: Piece | None = None) -> LinearPlan:
    """One linear layer, or a rank's piece of it: cut where its format can be, and else in one that can be cut there."""
    wanted, reason = choose_linear_format(linear, config)
    if piece is None or wanted is None:
        return LinearPlan(linear, wanted, reason)
    format = cuttable(wanted, piece.cut)
    if format != wanted:
        reason = f"{reason}; {wanted} cannot be cut at multiples of {piece.cut} inputs"
    return LinearPlan(linear, format, reason, piece.part)


def _consistent(plan: Plan) -> Plan:
    """Without a pool there is nothing the fused attention could write to: then no layer's attention is fused.

    What is not fused is not shared among ranks either.
    """
    kv = choose_kv(plan.structure, plan.layers, plan.config)
    layers = plan.layers
    if kv.format is None:
        layers = tuple(
            replace(layer, fuse_attention=False, reason=kv.reason) if layer.fuse_attention else layer
            for layer in layers
        )
    return _shared(replace(plan, layers=layers, kv=kv))


def _shared(plan: Plan) -> Plan:
    """The plan for its shard. Linear layers and embeddings are chosen anew, since where they are cut tells in what."""
    if plan.shard.size == 1:
        return plan
    linears = {linear.path: linear for linear in plan.structure.linears}
    whole = Division()
    if plan.kv.format is None:
        divisions = [whole] * len(plan.layers)
        notes = [f"replicated on {plan.shard.size} ranks: {plan.kv.reason}"]
        pieces: dict[str, Piece] = {}
    else:
        divisions = [divide_layer(each.structure, linears, plan.shard, each.fuse_mlp) for each in plan.layers]
        heads = [divide_head(linear, plan.shard) for linear in linears.values() if linear.role == "head"]
        notes = [note for division in (*divisions, *heads) for note in division.notes]
        pieces = {path: piece for division in (*divisions, *heads) for path, piece in division.pieces.items()}
    chosen = tuple(choose_linear(linear, plan.config, pieces.get(path)) for path, linear in linears.items())
    notes += [note for linear in chosen for note in _cut_notes(linear, plan.config, pieces.get(linear.structure.path))]
    return replace(
        plan,
        linears=chosen,
        embeddings=tuple(choose_embedding(table, chosen, plan.config) for table in plan.structure.embeddings),
        layers=tuple(replace(layer, share=d.share) for layer, d in zip(plan.layers, divisions, strict=True)),
        sharing=tuple(dict.fromkeys(notes)),
    )


def _cut_notes(linear: LinearPlan, config: Config, piece: Piece | None) -> list[str]:
    """What cutting a layer's inputs costs: another format, or activations that are quantised in other groups."""
    if piece is None or linear.format is None or piece.cut % BLOCK == 0:
        return []
    name = linear.structure.path.rpartition(".")[2]
    where = f"{name} is cut at multiples of {piece.cut} inputs"
    notes = []
    if linear.format != choose_linear_format(linear.structure, config)[0]:
        notes.append(f"{where}, where its scales are stored together; it is packed in {linear.format}")
    if linear.format.activation == "int8":
        notes.append(f"{where}: its activations are quantised in other groups of {BLOCK} than one rank's")
    return notes


def share_plan(plan: Plan, shard: Shard) -> Plan:
    """A plan for the whole, for one of the ranks that share it."""
    return _shared(replace(plan, shard=shard))


def make_plan(structure: Structure, config: Config, shard: Shard = ALONE) -> Plan:
    """Decide everything; nothing is computed and nothing touched.

    Args:
        structure: what detect() found.
        config: the choices.
        shard: the part of the model that is wanted, among the ranks that share it.
    """
    linears = tuple(choose_linear(linear, config) for linear in structure.linears)
    formats = {linear.structure.path: linear.format for linear in linears}
    layers = tuple(choose_layer(layer, formats, config) for layer in structure.layers)
    embeddings = tuple(choose_embedding(embedding, linears, config) for embedding in structure.embeddings)
    return _consistent(Plan(structure, config, linears, embeddings, layers, KvPlan(None, ""), shard))
