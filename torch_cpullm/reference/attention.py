"""The KV cache's rounding, and attention over dense keys and values."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class AttentionInputs:
    """One problem: queries, keys and values, and all that changes or hides a score.

    Attributes:
        query_BTHC: H a multiple of G.
        key_BSGC, value_BSGC: NaN are allowed in tokens that nobody sees.
        visible_BHTS: bool, B and H may be 1.
        scale: multiplies q k.
        soft_cap: 0 for none.
        bias_BHTS: added after the cap.
        sinks_H: scores of a token without a value.
    """

    query_BTHC: torch.Tensor
    key_BSGC: torch.Tensor
    value_BSGC: torch.Tensor
    visible_BHTS: torch.Tensor
    scale: float
    soft_cap: float = 0.0
    bias_BHTS: torch.Tensor | None = None
    sinks_H: torch.Tensor | None = None

    def per_query_head(self, x_BSGC: torch.Tensor) -> torch.Tensor:
        """[B, S, H, C] in float64: each KV head as often as query heads share it."""
        return x_BSGC.double().repeat_interleave(self.query_BTHC.shape[2] // x_BSGC.shape[2], dim=2)


def attention_weights(x: AttentionInputs) -> torch.Tensor:
    """softmax(soft_cap(scale * q k) + bias) over what is visible and a sink: float64 [B, H, T, S].

    Zeros for a row that sees nothing. The sink's own weight is left out.
    """
    key_BSHC = x.per_query_head(x.key_BSGC)
    scores_BHTS = torch.einsum("bthc,bshc->bhts", x.query_BTHC.double(), key_BSHC) * x.scale
    if x.soft_cap:
        scores_BHTS = x.soft_cap * torch.tanh(scores_BHTS / x.soft_cap)
    if x.bias_BHTS is not None:
        scores_BHTS = scores_BHTS + x.bias_BHTS
    scores_BHTS = scores_BHTS.masked_fill(~x.visible_BHTS, float("-inf"))
    if x.sinks_H is not None:
        sinks_BHT1 = x.sinks_H.double()[None, :, None, None].expand(*scores_BHTS.shape[:3], 1)
        return torch.softmax(torch.cat([scores_BHTS, sinks_BHT1], dim=-1), dim=-1)[..., :-1]
    sees_BHT1 = x.visible_BHTS.any(-1, keepdim=True)
    return torch.softmax(scores_BHTS.masked_fill(~sees_BHT1, 0.0), dim=-1).masked_fill(~x.visible_BHTS, 0.0)


def attention(x: AttentionInputs) -> torch.Tensor:
    """Weights times values in float64: float32 [B, T, H, C].

    A row that sees nothing is zero. Keys and values that a row does not see are as if they were not there: a NaN among
    them does not reach it.
    """
    value_BSHC, weights_BHTS = x.per_query_head(x.value_BSGC), attention_weights(x)
    unsound_BSHC = value_BSHC.isnan()
    out_BTHC = torch.einsum("bhts,bshc->bthc", weights_BHTS, value_BSHC.masked_fill(unsound_BSHC, 0.0))
    if unsound_BSHC.any():  # NaN for the rows that give it a weight, and for no other: 0 * NaN would reach all
        weighed_BHTS = (weights_BHTS != 0).double()
        out_BTHC[torch.einsum("bhts,bshc->bthc", weighed_BHTS, unsound_BSHC.double()) > 0] = float("nan")
    return out_BTHC.float()
