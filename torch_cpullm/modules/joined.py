"""Parts of a model on several ranks, brought together: one model on all of them, logits of the whole vocabulary."""

from __future__ import annotations

import torch
from torch import nn

from torch_cpullm import distributed
from torch_cpullm.distributed.agreement import meet, require_same
from torch_cpullm.distributed.gathering import Gathering
from torch_cpullm.modules.linear import PackedLinear
from torch_cpullm.modules.packed import PackedModule
from torch_cpullm.plan import Plan, Shard
from torch_cpullm.plan.shard import ALONE, share_rows

_TENSORS, _SAMPLE = 1000, 4096  # that ranks compare, and how many values of each


def own_shard() -> tuple[Shard, int]:
    """What this rank is to have of a model, and the group of all ranks: everything and 0 where there is one alone."""
    world = distributed.world()
    if world is None or not world.group:
        return ALONE, 0
    return Shard(world.rank, world.size), world.group


def require_same_model(model: nn.Module, plan: Plan, group: int) -> None:
    """Wait for all ranks, and compare what all of them must have: the plan, and the values that every rank has whole.

    Raises:
        RankError: a rank has another model (another checkpoint, or weights at random), or has left another layer alone.
        CollectiveError: a rank has ended.
    """
    meet(group)
    facts = {
        "class of the model": plan.structure.class_name,
        "choices": plan.config,
        "formats": [(linear.structure.path, str(linear.format)) for linear in plan.linears],
        "fused layers": [(layer.structure.path, layer.fuse_attention, layer.fuse_mlp) for layer in plan.layers],
        "weights": _sample(model),
    }
    require_same(group, "optimize", facts)


def _sample(model: nn.Module) -> torch.Tensor:
    """The first values of everything that is no rank's part: norms, embeddings, layers that are replicated."""
    whole = [parameter.detach() for parameter in model.parameters()]
    whole += [
        m.packed for m in model.modules() if isinstance(m, PackedModule) and m.is_whole and "packed" in m._buffers
    ]
    samples = [tensor.flatten()[:_SAMPLE].float() for tensor in whole[:_TENSORS]]
    return torch.cat(samples) if samples else torch.empty(0)


def join_heads(model: nn.Module, plan: Plan, group: int) -> None:
    """Let output heads give the logits of all ranks' rows."""
    for linear in plan.linears:
        module = model.get_submodule(linear.structure.path)
        if linear.structure.role == "head" and linear.part is not None and isinstance(module, PackedLinear):
            shards = (Shard(rank, plan.shard.size) for rank in range(plan.shard.size))
            spans = tuple(span for shard in shards if (span := share_rows(linear.structure.out_features, shard)))
            module.gather_by(Gathering(group, spans))
