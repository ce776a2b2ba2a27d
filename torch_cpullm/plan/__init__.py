"""Structure x Config -> Plan: pure functions over names and numbers, no tensors. Each decision carries its reason."""

from torch_cpullm.plan.plan import KvPlan, LayerPlan, LinearPlan, Plan, make_plan

__all__ = ["KvPlan", "LayerPlan", "LinearPlan", "Plan", "make_plan"]
