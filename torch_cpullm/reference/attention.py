"""The KV cache's rounding, and attention over dense keys and values."""

from __future__ import annotations

import torch


def round_kv(x: torch.Tensor, format: str) -> torch.Tensor:
    """What a cached key or value [..., C] reads back as: int8 is symmetric per token and head."""
    x = x.float()
    if format == "int8":
        scale = x.abs().amax(dim=-1, keepdim=True) / 127.0
        inverse = torch.where(scale > 1e-37, 1.0 / scale, torch.zeros_like(scale))
        return torch.round(x * inverse).clamp(-127, 127) * scale
    return x.bfloat16().float() if format == "bf16" else x


def visible(past_B: torch.Tensor, tokens: int, length: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Bool [B, 1 or H, T, length]: what each query may see; without a mask all tokens up to its own."""
    if mask is not None:
        return mask[..., :length].expand(past_B.shape[0], -1, -1, -1)
    last_BT = past_B[:, None] + torch.arange(tokens)
    return (torch.arange(length) <= last_BT[..., None])[:, None]


def attention(
    query_BTHC: torch.Tensor,
    key_BSGC: torch.Tensor,
    value_BSGC: torch.Tensor,
    visible_BHTS: torch.Tensor,
    scale: float,
    soft_cap: float = 0.0,
) -> torch.Tensor:
    """softmax(soft_cap(scale * q k)) v in float64: float32 [B, T, H, C]; a row that sees nothing is zero."""
    group = query_BTHC.shape[2] // key_BSGC.shape[2]
    key_BSHC = key_BSGC.double().repeat_interleave(group, dim=2)
    value_BSHC = value_BSGC.double().repeat_interleave(group, dim=2)
    scores_BHTS = torch.einsum("bthc,bshc->bhts", query_BTHC.double(), key_BSHC) * scale
    if soft_cap:
        scores_BHTS = soft_cap * torch.tanh(scores_BHTS / soft_cap)
    scores_BHTS = scores_BHTS.masked_fill(~visible_BHTS, float("-inf"))
    sees_BHT1 = visible_BHTS.any(-1, keepdim=True)
    weights_BHTS = torch.softmax(scores_BHTS.masked_fill(~sees_BHT1, 0.0), dim=-1).masked_fill(~visible_BHTS, 0.0)
    return torch.einsum("bhts,bshc->bthc", weights_BHTS, value_BSHC).float()
