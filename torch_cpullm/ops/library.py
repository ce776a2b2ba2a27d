"""Loads _C.so, which registers torch.ops.torch_cpullm.*; imported first by every file of this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

_Kernel = TypeVar("_Kernel", bound=Callable[..., object])

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


def fake(name: str) -> Callable[[_Kernel], _Kernel]:
    """Register what an op returns for tensors without data: shapes and dtypes, for torch.compile and export."""

    def register(kernel: _Kernel) -> _Kernel:
        torch.library.register_fake(f"torch_cpullm::{name}", kernel)
        return kernel

    return register
