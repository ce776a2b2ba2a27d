"""Moving outliers from activations into weights, where a scale for each output can carry them.

y = W x = (W / m) (m x) for any factors m > 0, one for each input. A channel that is 50 times its neighbours sets the
scale of the whole group of 256 it is quantised in, and leaves them two bits; divided by its factor it does not. Source:
SmoothQuant (arXiv 2211.10438), section 4.1, with its alpha = 0.5. Factors are powers of two here, so that W / m and m x
are exact.
"""

from __future__ import annotations

import torch

# Below this ratio of the largest channel to the median one, int8 keeps the median at four bits and more: the ratios of
# normal activations are 2 to 4, of models with outliers 20 to 1000.
_OUTLIER_RATIO = 8.0
_MOST = 2.0**20  # a channel that was never active says nothing about how large it may become


@torch.no_grad()
def choose_multiplier(absmax_K: torch.Tensor, weights_NK: list[torch.Tensor]) -> torch.Tensor | None:
    """Factors float32 [K] for an input whose channels were seen as large as `absmax_K`, or None without outliers.

    Args:
        absmax_K: largest magnitude of each channel over some rows.
        weights_NK: all weights that share the input.
    """
    median = float(absmax_K.median())
    if not median > 0.0 or not float(absmax_K.max()) > _OUTLIER_RATIO * median:
        return None
    if not bool(absmax_K.isfinite().all()):
        return None
    reach_K = torch.stack([weight_NK.abs().amax(dim=0).float() for weight_NK in weights_NK]).amax(dim=0)
    typical = float(reach_K.median())
    if not typical > 0.0 or not bool(reach_K.isfinite().all()):
        return None
    # Relative to the typical channel; one that is silent on either side counts as typical there.
    large_K = torch.where(absmax_K > 0, absmax_K / median, torch.ones_like(absmax_K))
    wide_K = torch.where(reach_K > 0, reach_K / typical, torch.ones_like(reach_K))
    exponent_K = torch.round(0.5 * (torch.log2(wide_K) - torch.log2(large_K)))
    return torch.exp2(exponent_K).clamp(1.0 / _MOST, _MOST)
