"""SlimAttention as a transformers attention function: for attention modules that are not fused, and for fallbacks."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from torch_cpullm.ops.attention import ScoreRules, slim_attention

NAME = "torch_cpullm"

# How often attention_forward ran in this thread: a model that ignores the choice of attention function shows by a 0.
_calls: ContextVar[int] = ContextVar("attention_forward_calls", default=0)


def register() -> None:
    """Make `attn_implementation="torch_cpullm"` known to transformers: a new key, nothing existing is touched.

    The mask function comes with it: for a name without one transformers passes no mask and padding would be ignored.
    """
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def calls() -> int:
    """Calls of `attention_forward` in this context so far."""
    return _calls.get()


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend: query [B, H, T, C], key, value [B, G, S, C], mask [B, 1, T, S] or None -> ([B, T, H, C], weights).

    The mask is bool, or floats to be added. Weights are None unless output_attentions asks for them. Whatever the
    kernels do not do runs in transformers' sdpa function, or, where that has no answer either (soft cap, sinks,
    attention weights), in plain torch.
    """
    _calls.set(_calls.get() + 1)
    soft_cap = kwargs.get("softcap")
    beyond_sdpa = bool(soft_cap) or kwargs.get("s_aux") is not None
    wants_weights = bool(kwargs.get("output_attentions") or getattr(module.config, "output_attentions", False))
    if wants_weights or (beyond_sdpa and not _kernels_can(module, query, key, value, attention_mask, kwargs)):
        return _plain_attention(module, query, key, value, attention_mask, **kwargs)
    # One query token over dense keys: sdpa reads them as they are, the kernels would lay them out first.
    if (query.shape[2] == 1 and not beyond_sdpa) or not _kernels_can(module, query, key, value, attention_mask, kwargs):
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out, None
    out_BTHC = slim_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        _scale(query, kwargs),
        ScoreRules(
            mask=_as_rule(attention_mask),
            sinks_H=kwargs.get("s_aux"),
            soft_cap=float(soft_cap or 0.0),
        ),
    )
    return out_BTHC, None


def _as_rule(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Bool as it is; floats to be added in float32."""
    return mask if mask is None or mask.dtype == torch.bool else mask.float()


def _is_rule(mask: torch.Tensor) -> bool:
    return mask.dim() == 4 and (mask.dtype == torch.bool or mask.is_floating_point())


def _scale(query: torch.Tensor, kwargs: dict[str, Any]) -> float:
    scaling = kwargs.get("scaling")
    return float(query.shape[-1] ** -0.5 if scaling is None else scaling)


def _is_causal(module: torch.nn.Module, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _kernels_can(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> bool:
    channels, sinks_H = query.shape[-1], kwargs.get("s_aux")
    inputs = [query, key] if sinks_H is None else [query, key, sinks_H]
    unknown = any(kwargs.get(name) is not None for name in ("position_bias", "cache"))
    return (
        not unknown
        and not kwargs.get("dropout")
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))
        and not torch.compiler.is_compiling()
        and query.device.type == "cpu"
        and channels % 16 == 0
        and channels <= 256
        and key.shape == value.shape
        and key.shape[2] >= query.shape[2]
        and query.shape[1] % key.shape[1] == 0
        and (_is_causal(module, kwargs) if mask is None else _is_rule(mask))
        and (mask is not None or key.shape[2] == query.shape[2] or query.shape[2] == 1)
    )


def _plain_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The equation, with its weights [B, H, T, S]."""
    group = query.shape[1] // key.shape[1]
    key_BHSC, value_BHSC = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores_BHTS = (query @ key_BHSC.transpose(2, 3)) * _scale(query, kwargs)
    soft_cap = kwargs.get("softcap")
    if soft_cap:
        scores_BHTS = soft_cap * torch.tanh(scores_BHTS / soft_cap)
    tokens, length = scores_BHTS.shape[2:]
    if mask is None and _is_causal(module, kwargs):
        mask = torch.ones(tokens, length, dtype=torch.bool, device=query.device).tril(length - tokens)
    if mask is not None and mask.dtype == torch.bool:
        scores_BHTS = scores_BHTS.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores_BHTS = scores_BHTS + mask
    sinks_H = kwargs.get("s_aux")
    if sinks_H is not None:  # a last column that has no value
        sinks_BHT1 = sinks_H.to(scores_BHTS.dtype).view(1, -1, 1, 1).expand(*scores_BHTS.shape[:3], 1)
        scores_BHTS = torch.cat([scores_BHTS, sinks_BHT1], dim=-1)
    weights_BHTS = torch.softmax(scores_BHTS, dim=-1, dtype=torch.float32).nan_to_num().to(query.dtype)[..., :length]
    dropped = torch.nn.functional.dropout(weights_BHTS, p=kwargs.get("dropout") or 0.0, training=module.training)
    return (dropped @ value_BHSC).transpose(1, 2).contiguous(), weights_BHTS
