"""How far a model's words are from those of a float32 model, on fixed windows of held-out text."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import log_softmax

BATCH = 6


class Judge:
    """Perplexity and KL divergence (nats a token) from a float32 model, over fixed windows."""

    def __init__(self, model: Any, windows_NT: torch.Tensor) -> None:
        self._windows = windows_NT.split(BATCH)
        self._truth = [self._log_probabilities(model, window_BT).half() for window_BT in self._windows]

    @staticmethod
    @torch.inference_mode()
    def _log_probabilities(model: Any, window_BT: torch.Tensor) -> torch.Tensor:
        return log_softmax(model(input_ids=window_BT, use_cache=False).logits[:, :-1].float(), dim=-1)

    def score(self, model: Any) -> tuple[float, float]:
        """Return (perplexity, KL)."""
        loss, divergence, count = 0.0, 0.0, 0
        for window_BT, truth_BTV in zip(self._windows, self._truth, strict=True):
            found_BTV = self._log_probabilities(model, window_BT)
            loss -= float(found_BTV.gather(-1, window_BT[:, 1:, None]).sum())
            divergence += float((truth_BTV.float().exp() * (truth_BTV.float() - found_BTV)).sum())
            count += found_BTV.shape[0] * found_BTV.shape[1]
        return math.exp(loss / count), divergence / count
