"""All packed weights of a model: what is seen before, in which order, and when a rank's part is cut from them."""

from __future__ import annotations

import torch
from torch import nn

from torch_cpullm.modules.calibrate import Calibration
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.modules.observe import Seen, observe
from torch_cpullm.modules.packing import Packer, Progress, pack_embedding
from torch_cpullm.modules.proof import ProofError
from torch_cpullm.plan import LinearPlan, Plan
from torch_cpullm.plan.explain import Row


def pack_weights(
    model: nn.Module, plan: Plan, calibration_NT: torch.Tensor | None, progress: Progress | None
) -> tuple[list[Row], str | None]:
    """Pack everything the plan names; returns the rows of explain(), and why texts could not be used, if so.

    A rank's part is cut from each weight as soon as the whole is needed no more: when it has been checked, and
    calibrated layers have run with it. So one layer at a time is whole, and every rank has the codes of one rank alone.
    """
    groups = plan.input_groups()
    packer = Packer(model, plan.config.check, progress, len(plan.linears))
    # A model whose first layers are cut cannot run: all inputs are seen before.
    seen = _observe(model, plan, groups) if plan.is_partial else None
    fault = None
    if calibration_NT is not None:
        try:
            groups = Calibration(model, calibration_NT).pack_layers(groups, packer)
        except ProofError as failure:
            fault = str(failure)
            groups = [g for g in groups if not isinstance(model.get_submodule(g[0].structure.path), PackedLinear)]
    if seen is None:
        seen = _observe(model, plan, groups)
    for group in groups:
        packer.pack(group, seen)
        packer.cut(group)
    for group in plan.input_groups():  # of a layer whose calibration failed half way
        packer.cut(group)
    if progress:
        progress(len(plan.linears), len(plan.linears), "")
    return packer.rows + [pack_embedding(model, embedding) for embedding in plan.embeddings], fault


def _observe(model: nn.Module, plan: Plan, groups: list[tuple[LinearPlan, ...]]) -> dict[str, Seen]:
    quantized = [
        linear.structure.path for group in groups for linear in group if linear.format and linear.format.quantized
    ]
    return observe(model, quantized) if quantized and plan.structure.generates else {}
