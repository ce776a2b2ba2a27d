"""Large constant biases of keys put into a model that has none, as Qwen2's keys have them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SIGMAS = 30.0
CHANNELS = 3


@torch.no_grad()
def plant_key_biases(model: Any, ids_BT: torch.Tensor, slow: bool) -> Any:
    """Add to `CHANNELS` channels of each KV head's keys 30 times their standard deviation on `ids_BT`, in place.

    Before the rotation by position, where Qwen2 has its bias: behind it a biased pair of channels turns with the token.
    `slow`: channels that turn least, as in models that were trained with a bias; else any, which no longer speaks well.
    """
    generator = torch.Generator().manual_seed(5)
    deviations: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _module, _inputs, out, n=name: deviations.__setitem__(n, out.float().flatten(0, -2).std(dim=0))
        )
        for name, module in model.named_modules()
        if name.endswith("k_proj")
    ]
    model(input_ids=ids_BT, use_cache=False)
    for handle in handles:
        handle.remove()
    channels = model.config.head_dim
    for name, sigma_N in deviations.items():
        projection = model.get_submodule(name)
        bias_N = torch.zeros_like(sigma_N)
        for head in range(len(sigma_N) // channels):
            drawn = torch.randperm(channels // 8 if slow else channels, generator=generator)[:CHANNELS]
            chosen = head * channels + (channels // 2 - 1 - drawn if slow else drawn)
            sign = torch.randint(0, 2, (CHANNELS,), generator=generator) * 2 - 1
            bias_N[chosen] = SIGMAS * sign * sigma_N[chosen]
        projection.bias = nn.Parameter(bias_N.to(projection.weight.dtype))
    return model
