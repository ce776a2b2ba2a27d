"""Loads torch_cpullm/_C.so, which registers torch.ops.torch_cpullm.*; all of ops/ imports this file first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from torch_cpullm.errors import ConfigError

_Kernel = TypeVar("_Kernel", bound=Callable[..., object])

_PATH = Path(__file__).parent.parent / "_C.so"


def _load() -> None:
    if not _PATH.exists():
        raise ImportError(
            f"torch_cpullm: the compiled operators are missing ({_PATH.name} beside the package); "
            "run `make build`, or `pip install .` with g++ installed"
        )
    torch.ops.load_library(str(_PATH))
    fault = torch.ops.torch_cpullm.isa_fault()
    if fault:
        raise ConfigError(fault)


_load()
kernels = torch.ops.torch_cpullm


def _refuse_meta(name: str, values: tuple[object, ...]) -> None:
    for argument, value in zip(getattr(kernels, name).default._schema.arguments, values, strict=False):
        for tensor in value if isinstance(value, list | tuple) else (value,):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                raise RuntimeError(
                    f"{argument.name}: expected a tensor on the CPU, got one on meta; materialise the model first"
                )


def fake(name: str) -> Callable[[_Kernel], _Kernel]:
    """Register what an op returns for fake tensors: shapes and dtypes, for torch.compile and export.

    torch calls the same function when a tensor lies on the meta device, and the result would be on meta as well: a
    forgotten weight would go unnoticed. Those are refused by name.
    """

    def register(kernel: _Kernel) -> _Kernel:
        @functools.wraps(kernel)
        def checked(*values: object) -> object:
            _refuse_meta(name, values)
            return kernel(*values)

        torch.library.register_fake(f"torch_cpullm::{name}", checked)
        return kernel

    return register
