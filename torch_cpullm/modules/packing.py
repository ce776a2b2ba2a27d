"""Packing a model's linear layers and embeddings: measured on what reaches them, then taken over or left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from torch_cpullm.errors import UnsupportedModelError
from torch_cpullm.modules.embedding import PackedEmbedding
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.modules.observe import Seen
from torch_cpullm.ops.linear import Scales, pack
from torch_cpullm.pack import check_packed_linear, choose_multiplier, pack_linear, random_rows
from torch_cpullm.plan import EmbeddingPlan, LinearPlan
from torch_cpullm.plan.explain import Row

Progress = Callable[[int, int, str], None]
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Solved:
    """A weight [N, K] whose values lie on a grid, and the grid; of `weight / multiplier` where there is one."""

    weight_NK: torch.Tensor
    scales: Scales


Solver = Callable[[LinearPlan, nn.Linear, torch.Tensor | None], Solved | None]


def _round_to_nearest(_: LinearPlan, __: nn.Linear, ___: torch.Tensor | None) -> Solved | None:
    return None


class Packer:
    """Packs the linear layers of one model.

    Args:
        model: changed in place, layer by layer, so that no second copy of it is ever alive.
        check: leave a layer alone whose output would change by more than its format may cost.
        progress: told (done, total, path).
        total: linear layers in all.
    """

    def __init__(self, model: nn.Module, check: bool, progress: Progress | None, total: int) -> None:
        self._model, self._check, self._progress, self._total = model, check, progress, total
        self._rows: dict[str, Row] = {}

    @property
    def rows(self) -> list[Row]:
        """Of explain(), one for each linear layer so far."""
        return list(self._rows.values())

    def pack(self, group: tuple[LinearPlan, ...], seen: dict[str, Seen], solver: Solver = _round_to_nearest) -> None:
        """Pack linear layers that share their input; `seen` may lack them."""
        planned = [(linear, self._model.get_submodule(linear.structure.path)) for linear in group]
        modules = [module for linear, module in planned if linear.format and isinstance(module, nn.Linear)]
        first = seen.get(group[0].structure.path)
        multiplier_K = None
        if first is not None and all(linear.format and linear.format.quantized for linear in group):
            multiplier_K = choose_multiplier(first.absmax_K, [module.weight for module in modules])
            if multiplier_K is not None and not self._helps(group, modules, multiplier_K, first.sample_MK):
                multiplier_K = None
        # All are solved before one is taken over: a failure half way leaves the whole group as it was.
        solved = [
            solver(linear, module, multiplier_K) if linear.format and isinstance(module, nn.Linear) else None
            for linear, module in planned
        ]
        for (linear, module), solution in zip(planned, solved, strict=True):
            if self._progress:
                self._progress(len(self._rows), self._total, linear.structure.path)
            self._rows[linear.structure.path] = self._pack_one(linear, module, multiplier_K, first, solution)

    def cut(self, group: tuple[LinearPlan, ...]) -> None:
        """Leave packed layers the parts that are planned; they do not run as the whole model's from then on.

        Raises:
            UnsupportedModelError: a layer was not packed. Its block could not be fused, and layers of its kind may have
                been cut already, so that it is too late to leave them all whole.
        """
        for linear in group:
            if linear.part is None:
                continue
            path = linear.structure.path
            module = self._model.get_submodule(path)
            if not isinstance(module, PackedLinear):
                raise UnsupportedModelError(
                    f"{path}: expected a layer that ranks can share, got one that is left alone: "
                    f"{self._rows[path].reason}; load the model again and choose smaller groups, 'bf16', or check=False"
                )
            if module.part is None:
                module.cut(linear.part)
                self._rows[path] = replace(self._rows[path], bytes_after=module.packed.numel())

    def _helps(
        self, group: tuple[LinearPlan, ...], modules: list[nn.Linear], multiplier_K: torch.Tensor, x_MK: torch.Tensor
    ) -> bool:
        """Whether the group's first weight comes out closer with the multiplier than without."""
        format = group[0].format
        assert format is not None
        plain, moved = (
            check_packed_linear(modules[0], pack_linear(modules[0], format, factors, lasting=False), format, x_MK).error
            for factors in (None, multiplier_K)
        )
        return moved < plain

    def _pack_one(
        self,
        linear: LinearPlan,
        module: nn.Module,
        multiplier_K: torch.Tensor | None,
        seen: Seen | None,
        solved: Solved | None,
    ) -> Row:
        structure, format = linear.structure, linear.format
        before = structure.out_features * structure.in_features * _ELEMENT_BYTES[structure.dtype]
        row = Row(structure.path, "Linear", "left alone", before, before, linear.reason)
        if format is None or not isinstance(module, nn.Linear):
            return row
        lasting = linear.part is None
        if solved is None:
            packed = pack_linear(module, format, multiplier_K, lasting=lasting)
        else:
            packed = pack_linear(module, format, multiplier_K, solved.scales, solved.weight_NK, lasting=lasting)
        if self._check:
            x_MK = random_rows(structure.in_features) if seen is None else seen.sample_MK
            result = check_packed_linear(module, packed, format, x_MK)
            if not result.passed:
                reason = f"{format} would change its output by {result.error:.1%} (allowed {result.limit:.1%})"
                return Row(structure.path, "Linear", "left alone", before, before, reason)
        tied = self._model.get_submodule(structure.tied_to) if structure.tied_to is not None else None
        PackedLinear.take_over(module, packed, format, tied, multiplier_K)
        reason = linear.reason if multiplier_K is None else f"{linear.reason}, outlier channels moved into the weight"
        reason = reason if solved is None else f"{reason}, calibrated"
        return Row(structure.path, "Linear", str(format), 0 if tied else before, packed.numel(), reason)


def pack_embedding(model: nn.Module, plan: EmbeddingPlan) -> Row:
    """Pack a table of embeddings, or let it read the head's bytes."""
    structure = plan.structure
    module = model.get_submodule(structure.path)
    before = structure.rows * structure.width * _ELEMENT_BYTES[structure.dtype]
    row = Row(structure.path, "Embedding", "left alone", before, before, plan.reason)
    if plan.format is None or not isinstance(module, nn.Embedding):
        return row
    if plan.shared_with is None:
        packed = pack(module.weight, None, plan.format)
        PackedEmbedding.take_over(module, packed, plan.format)
        return Row(structure.path, "Embedding", str(plan.format), before, packed.numel(), plan.reason)
    head = model.get_submodule(plan.shared_with)
    if not isinstance(head, PackedLinear):
        return Row(structure.path, "Embedding", "left alone", before, before, f"{plan.shared_with} was left alone")
    PackedEmbedding.take_over(module, head, plan.format)
    return Row(structure.path, "Embedding", str(plan.format), before, 0, plan.reason)
