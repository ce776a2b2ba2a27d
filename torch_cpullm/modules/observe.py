"""What reaches the linear layers of a model: a look at their inputs while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torch_cpullm.modules.proof import ProofError, evaluating

_SAMPLE_ROWS = 8
# Outlier channels are a property of the weights: they show with any tokens, and in the first few dozen.
_RANDOM_TOKENS = 48


@dataclass(frozen=True)
class Seen:
    """Inputs of one linear layer.

    Attributes:
        absmax_K: float32, the largest magnitude of each channel.
        sample_MK: float32, some of the rows.
    """

    absmax_K: torch.Tensor
    sample_MK: torch.Tensor


@contextmanager
def hooked(modules: dict[str, nn.Module], visit: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """While open, call `visit(path, x_MK)` with what each module is given, its rows flattened."""

    def watch(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
                visit(path, args[0].detach().flatten(0, -2))

        return hook

    handles = [module.register_forward_pre_hook(watch(path)) for path, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Observer:
    """Collects a Seen for each path."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}

    def visit(self, path: str, x_MK: torch.Tensor) -> None:
        """Take in rows [M, K] that reached `path`; rows that are not finite are left out."""
        rows_MK = x_MK.float()
        rows_MK = rows_MK[rows_MK.isfinite().all(dim=1)]
        if len(rows_MK) == 0:
            return
        absmax_K = rows_MK.abs().amax(dim=0)
        before = self.seen.get(path)
        step = max(1, len(rows_MK) // _SAMPLE_ROWS)
        sample_MK = rows_MK[::step][:_SAMPLE_ROWS].clone() if before is None else before.sample_MK
        if before is not None:
            absmax_K = torch.maximum(absmax_K, before.absmax_K)
        self.seen[path] = Seen(absmax_K, sample_MK)


def observe(model: Any, paths: list[str]) -> dict[str, Seen]:
    """Run `model` on random tokens and look at the linear layers at `paths`.

    Returns:
        What was seen; nothing where the model does not run on token ids alone, and no entry for a layer that was not
        reached (an expert, say).
    """
    observer = Observer()
    try:
        with evaluating(model), hooked({path: model.get_submodule(path) for path in paths}, observer.visit):
            vocabulary = model.get_input_embeddings().num_embeddings
            ids_BT = torch.randint(0, vocabulary, (1, _RANDOM_TOKENS), generator=torch.Generator().manual_seed(0))
            model(input_ids=ids_BT, use_cache=False)
    except ProofError:
        return {}
    return observer.seen
