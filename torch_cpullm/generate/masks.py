"""Attention masks of a model's own, as the kernels read them: bool, True where a row sees a token."""

from __future__ import annotations

import torch

_FOUND = "_cpullm_visible"


def visible(mask: object) -> torch.Tensor | None:
    """A mask [B, H or 1, T, S] as bool.

    Models with attention of their own add a mask to the scores: zeros, and the lowest number or -inf where a row must
    not look. Such a mask is read once, however many layers are called with it.

    Returns:
        None for what is no mask of four dimensions, and for one that adds anything else, as ALiBi does.
    """
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        return None
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        return None
    version = None if mask.is_inference() else mask._version  # who writes into an inference tensor leaves no trace
    found = vars(mask).get(_FOUND)
    if found is None or version is None or found[0] != version:
        found = version, _read(mask)
        vars(mask)[_FOUND] = found
    seen: torch.Tensor | None = found[1]
    return seen


def _read(mask: torch.Tensor) -> torch.Tensor | None:
    seen = mask == 0
    hidden = mask < torch.finfo(mask.dtype).min / 2
    return seen if bool((seen | hidden).all()) else None


def of_tokens(mask_BT: torch.Tensor) -> torch.Tensor:
    """The mask of one more token, [B, 1, 1, T], where generate() has told which tokens count."""
    return mask_BT.bool()[:, None, None]
