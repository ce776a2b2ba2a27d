"""Every choice a user has, in one place; and the only reader of environment variables."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Literal, get_args

from torch_cpullm.errors import ConfigError

Weights = Literal["int8", "bf16", "keep"]
KvCache = Literal["int8", "bf16", "keep"]
Attention = Literal["slim", "keep"]


@dataclass(frozen=True)
class Config:
    """What `optimize()` shall do.

    Attributes:
        weights: format of the linear layers. "int8": symmetric per output channel, activations quantised per token and
            group of 256 inputs; "bf16": brain float; "keep": the precision they have (float32 or bfloat16), re-laid for
            the kernels but bit-exact.
        kv_cache: format of the cached keys and values. "int8": one scale per token and head; "keep": the model's dtype.
        attention: "slim" replaces attention, rope and norms by fused ops over a paged KV pool; "keep" leaves the
            model's own attention and cache.
        lm_head: format of the output head; None means as `weights`.
        check: prove every replacement numerically against the original, and leave alone what differs.
    """

    weights: Weights = "int8"
    kv_cache: KvCache = "int8"
    attention: Attention = "slim"
    lm_head: Weights | None = None
    check: bool = True

    def __post_init__(self) -> None:
        allowed: dict[str, tuple[object, ...]] = {
            "weights": get_args(Weights),
            "kv_cache": get_args(KvCache),
            "attention": get_args(Attention),
            "lm_head": (None, *get_args(Weights)),
            "check": (True, False),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in allowed[field.name]:
                choices = ", ".join(repr(choice) for choice in allowed[field.name])
                raise ConfigError(f"{field.name}: expected one of {choices}, got {value!r}")


def forced_isa() -> str | None:
    """The value of TORCH_CPULLM_ISA ("avx2", or "avx2,-avxvnni"), which the C++ side obeys when it is loaded."""
    return os.environ.get("TORCH_CPULLM_ISA") or None


def kv_limit_bytes() -> int | None:
    """Bytes one KV pool may grow to, from TORCH_CPULLM_KV_LIMIT; None when it is not set.

    Raises:
        ConfigError: the variable is not a positive whole number.
    """
    text = os.environ.get("TORCH_CPULLM_KV_LIMIT")
    if not text:
        return None
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(f"TORCH_CPULLM_KV_LIMIT: expected a positive number of bytes, got {text!r}")
    return int(text)
