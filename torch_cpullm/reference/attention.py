"""The KV cache's rounding, and attention over dense keys and values."""

from __future__ import annotations

import torch


def round_kv(x: torch.Tensor, format: str) -> torch.Tensor:
    """What a cached key or value [..., C] reads back as: int8 is symmetric per token and head.

    One NaN or Inf makes all channels of that token and head NaN, in every format.
    """
    x = x.float()
    unsound = ~x.isfinite().all(dim=-1, keepdim=True)
    if format == "int8":
        scale = x.abs().amax(dim=-1, keepdim=True) / 127.0
        inverse = torch.where(scale > 1e-37, 1.0 / scale, torch.zeros_like(scale))
        x = torch.round(x * inverse).clamp(-127, 127) * scale
    elif format == "bf16":
        x = x.bfloat16().float()
    return x.masked_fill(unsound, float("nan"))


def visible(past_B: torch.Tensor, tokens: int, length: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Bool [B, 1 or H, T, length]: what each query may see; without a mask all tokens up to its own.

    A mask cannot show a sequence more than the past_B + tokens that it has.
    """
    if mask is not None:
        exists_BS = torch.arange(length) < past_B[:, None] + tokens
        return mask[..., :length] & exists_BS[:, None, None]
    last_BT = past_B[:, None] + torch.arange(tokens)
    return (torch.arange(length) <= last_BT[..., None])[:, None]


def attention_weights(
    query_BTHC: torch.Tensor,
    key_BSGC: torch.Tensor,
    visible_BHTS: torch.Tensor,
    scale: float,
    soft_cap: float = 0.0,
) -> torch.Tensor:
    """softmax(soft_cap(scale * q k)) over what is visible: float64 [B, H, T, S], zeros for a row that sees nothing."""
    group = query_BTHC.shape[2] // key_BSGC.shape[2]
    key_BSHC = key_BSGC.double().repeat_interleave(group, dim=2)
    scores_BHTS = torch.einsum("bthc,bshc->bhts", query_BTHC.double(), key_BSHC) * scale
    if soft_cap:
        scores_BHTS = soft_cap * torch.tanh(scores_BHTS / soft_cap)
    scores_BHTS = scores_BHTS.masked_fill(~visible_BHTS, float("-inf"))
    sees_BHT1 = visible_BHTS.any(-1, keepdim=True)
    return torch.softmax(scores_BHTS.masked_fill(~sees_BHT1, 0.0), dim=-1).masked_fill(~visible_BHTS, 0.0)


def attention(
    query_BTHC: torch.Tensor,
    key_BSGC: torch.Tensor,
    value_BSGC: torch.Tensor,
    visible_BHTS: torch.Tensor,
    scale: float,
    soft_cap: float = 0.0,
) -> torch.Tensor:
    """softmax(soft_cap(scale * q k)) v in float64: float32 [B, T, H, C].

    A row that sees nothing is zero. Keys and values that a row does not see are as if they were not there: a NaN among
    them does not reach it.
    """
    group = query_BTHC.shape[2] // key_BSGC.shape[2]
    value_BSHC = value_BSGC.double().repeat_interleave(group, dim=2)
    weights_BHTS = attention_weights(query_BTHC, key_BSGC, visible_BHTS, scale, soft_cap)
    unsound_BSHC = value_BSHC.isnan()
    out_BTHC = torch.einsum("bhts,bshc->bthc", weights_BHTS, value_BSHC.masked_fill(unsound_BSHC, 0.0))
    if unsound_BSHC.any():  # NaN for the rows that give it a weight, and for no other: 0 * NaN would reach all
        weighed_BHTS = (weights_BHTS != 0).double()
        out_BTHC[torch.einsum("bhts,bshc->bthc", weighed_BHTS, unsound_BSHC.double()) > 0] = float("nan")
    return out_BTHC.float()
