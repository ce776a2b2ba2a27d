"""The five-line story: optimize, explain, restore.

structure = detect(model)              what is there
plan      = make_plan(structure, ...)  what to do, and why
swap(model, plan)                      prove, pack, swap
"""

from __future__ import annotations

import warnings
from typing import TypeVar

from torch import nn

from torch_cpullm.config import Attention, Config, KvCache, Weights
from torch_cpullm.detect import detect
from torch_cpullm.errors import UnsupportedModelError
from torch_cpullm.modules.progress import packing_progress
from torch_cpullm.modules.swap import state_of, swap, unswap
from torch_cpullm.plan import make_plan
from torch_cpullm.plan.explain import Explanation

Model = TypeVar("Model", bound=nn.Module)


def optimize(
    model: Model,
    weights: Weights = "int8",
    kv_cache: KvCache = "int8",
    attention: Attention = "slim",
    lm_head: Weights | None = None,
    check: bool = True,
) -> Model:
    """Make a Hugging Face model fast on this CPU, in place; its generate() stays the call it was.

    Linear layers are packed and quantised, decoder layers that are proven equal to ours become two fused ops each, and
    generate() gets a paged KV cache. What does not match is left alone; `explain(model)` says what and why.

    Args:
        model: any torch module on the CPU; most is gained on transformers' decoder models.
        weights: format of the linear layers, see Config.
        kv_cache: format of the KV cache, see Config.
        attention: "slim" or "keep", see Config.
        lm_head: format of the output head; None: as `weights`.
        check: prove every replacement numerically first (a second for a model of 1 B parameters).

    Returns:
        The same model. A second call with the same choices does nothing; with others it restores and starts again.

    Raises:
        ConfigError: a choice does not exist.
        UnsupportedModelError: `model` is not a torch module.
    """
    config = Config(weights=weights, kv_cache=kv_cache, attention=attention, lm_head=lm_head, check=check)
    _require_module(model)
    state = state_of(model)
    if state is not None:
        if state.plan.config == config:
            return model
        restore(model)
    plan = make_plan(detect(model), config)
    with packing_progress(sum(linear.format is not None for linear in plan.linears)) as progress:
        swap(model, plan, progress)
    return model


def explain(model: nn.Module) -> Explanation:
    """Say, module by module, what optimize() swapped, in which format and bytes, or why it was left alone.

    Raises:
        UnsupportedModelError: `model` was not optimised.
    """
    _require_module(model)
    state = state_of(model)
    if state is None:
        raise UnsupportedModelError("model: expected one that optimize() has returned, got one that is not optimised")
    return state.explanation


def restore(model: Model) -> Model:
    """Put the original classes back, in place. Does nothing to a model that is not optimised.

    Weights that were rounded (to int8, or from float32 to bf16) come back dequantised, with the rounding they have
    taken: a warning says so.
    """
    _require_module(model)
    rounded = sorted(unswap(model))
    if rounded:
        warnings.warn(
            f"torch_cpullm: restored weights are the dequantised {'/'.join(rounded)} values, not the ones loaded; "
            "load the checkpoint again for those",
            stacklevel=2,
        )
    return model


def _require_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
