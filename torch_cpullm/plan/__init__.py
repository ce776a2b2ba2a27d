"""Structure x Config -> Plan: pure functions over names and numbers, no tensors. Each decision carries its reason."""

from torch_cpullm.plan.plan import EmbeddingPlan, KvPlan, LayerPlan, LinearPlan, Plan, make_plan, share_plan
from torch_cpullm.plan.shard import Shard

__all__ = ["EmbeddingPlan", "KvPlan", "LayerPlan", "LinearPlan", "Plan", "Shard", "make_plan", "share_plan"]
