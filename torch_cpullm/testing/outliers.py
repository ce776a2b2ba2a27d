"""Outlier channels put into a model that has none, without changing what it computes."""

from __future__ import annotations

from typing import Any

import torch

FACTOR = 50.0
CHANNELS = 4


def plant_outliers(model: Any) -> Any:
    """Make a few channels of each norm 50 times as large and the weights that read them as much smaller, in place."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]),
                (layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]),
            ):
                channels = torch.randperm(norm.weight.numel(), generator=generator)[:CHANNELS]
                norm.weight[channels] *= FACTOR
                for reader in readers:
                    reader.weight[:, channels] /= FACTOR
    return model
