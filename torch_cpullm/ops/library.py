"""Loads _C.so, which registers torch.ops.torch_cpullm.*; imported first by every file of this package."""

from __future__ import annotations

from pathlib import Path

import torch

_PATH = Path(__file__).parent.parent / "_C.so"


def _load() -> None:
    if not _PATH.exists():
        raise ImportError(
            f"torch_cpullm: the compiled operators are missing ({_PATH.name} beside the package); "
            "run `make build`, or `pip install .` with g++ installed"
        )
    torch.ops.load_library(str(_PATH))


_load()
kernels = torch.ops.torch_cpullm
