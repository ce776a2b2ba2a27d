"""A packed model becomes a rank's part of it: one of `save`, or of save_pretrained(), that ranks load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from torch_cpullm.errors import UnsupportedModelError
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.modules.packed import PackedModule
from torch_cpullm.plan import LinearPlan, Plan, Shard, share_plan
from torch_cpullm.plan.explain import Explanation


def cut_packed(model: nn.Module, plan: Plan, shard: Shard, after_each: Callable[[], None]) -> Plan:
    """Leave a model whose weights are packed the parts of a rank; returns the plan for them.

    Args:
        model: changed in place, weight by weight.
        plan: that it was packed by.
        shard: the rank's.
        after_each: called when a whole weight is needed no more.

    Raises:
        UnsupportedModelError: a weight lies in a format that cannot be cut where the ranks meet. Nothing was changed.
    """
    shared = share_plan(plan, shard)
    for linear in shared.linears:
        if linear.part is not None:
            _require_cuttable(model, linear)
    for table in shared.embeddings:
        module = model.get_submodule(table.structure.path)
        if isinstance(module, PackedModule) and table.shared_with is None:
            module.disown()  # the head is going to be cut, and the table stays whole
    for linear in shared.linears:
        module = model.get_submodule(linear.structure.path)
        if linear.part is not None and isinstance(module, PackedLinear):
            module.cut(linear.part)
            after_each()
    return shared


def explain_cut(explanation: Explanation, model: nn.Module, plan: Plan) -> Explanation:
    """What explain() says of the whole, for a rank's part: bytes of what it has now, and what it has a part of.

    A table that had read the bytes of its head has bytes of its own where the head was cut.
    """
    rows = tuple(
        replace(row, bytes_after=module.packed.numel())
        if isinstance(module := model.get_submodule(row.path), PackedModule) and "packed" in module._buffers
        else row
        for row in explanation.swapped
    )
    before = sum(row.bytes_after for row in explanation.swapped)
    after = explanation.weight_bytes_after - before + sum(row.bytes_after for row in rows)
    return replace(explanation, swapped=rows, weight_bytes_after=after, notes=(*explanation.notes, *plan.sharing))


def _require_cuttable(model: nn.Module, linear: LinearPlan) -> None:
    path = linear.structure.path
    module = model.get_submodule(path)
    packed = str(module._packed_state.format) if isinstance(module, PackedLinear) else "no packed format"
    if packed != str(linear.format):
        raise UnsupportedModelError(
            f"{path}: expected a weight that can be cut for the ranks ({linear.format}), got one in {packed}; let the "
            "ranks load the checkpoint it was made from, with from_pretrained(..., quantization_config=CpuLlmConfig())"
        )
