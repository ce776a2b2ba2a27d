"""Every choice a user has, in one place; and the only Python reader of environment variables.

csrc/dispatch/features.cpp reads TORCH_CPULLM_ISA as well, when the library is loaded.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast, get_args

from torch_cpullm.errors import ConfigError

Weights = Literal["int8", "int4", "bf16", "keep"]
Activations = Literal["int8", "bf16"]
Embeddings = Literal["int8", "keep"]
GROUP_SIZES = {"int8": (0, 32, 64, 128), "int4": (32, 64, 128)}
KvCache = Literal["int8", "bf16", "keep"]
Attention = Literal["slim", "keep"]
Sampler = Literal["transformers", "fused"]
Transport = Literal["auto", "ccl", "shm", "gloo"]

QUANT_METHOD = "torch_cpullm"
"""The name in quantization_config of a configuration of transformers."""

_OF_WEIGHTS = ("group_size", "symmetric", "calibrated")  # what they may be depends on the weights' format


@dataclass(frozen=True)
class Config:
    """What `optimize()` shall do.

    Attributes:
        weights: format of the linear layers. "int8": symmetric, one scale for each output or group; "int4": a scale for
            each group; "bf16": brain float; "keep": the precision they have (float32 or bfloat16), re-laid for the
            kernels but bit-exact.
        group_size: inputs that share a scale: 32, 64 or 128; 0: all inputs of an output ("int8" only). None: 0 for
            "int8", 32 for "int4".
        symmetric: False gives each group of "int4" a zero point as well.
        activations: what inputs of quantised weights become: "int8", per token and group of 256 inputs, or "bf16".
        kv_cache: format of the cached keys and values. "int8": one scale per token and head; "keep": the model's dtype
            (float32 for float16, which the pool does not have).
        attention: "slim" replaces attention, rope and norms by fused ops over a paged KV pool; "keep" leaves the
            model's own attention and cache.
        lm_head: format of the output head; None: "int8" beside quantised weights, else as `weights`.
        embeddings: format of the token embeddings. "int8": one scale for each token, the head's own bytes where the two
            are tied; None: "int8" beside quantised weights, else "keep".
        calibrated: whether optimize() was given texts to choose codes by (GPTQ).
        check: prove every replacement numerically against the original, and leave alone what differs.
        sampler: "fused" draws tokens by one operator where it knows all of generate()'s processors: the same
            distribution from other random numbers. "transformers": its own processors and draw.
    """

    weights: Weights = "int8"
    group_size: int | None = None
    symmetric: bool = True
    activations: Activations = "int8"
    kv_cache: KvCache = "int8"
    attention: Attention = "slim"
    lm_head: Weights | None = None
    embeddings: Embeddings | None = None
    calibrated: bool = False
    check: bool = True
    sampler: Sampler = "transformers"

    def __post_init__(self) -> None:
        allowed: dict[str, tuple[object, ...]] = {
            "weights": get_args(Weights),
            "group_size": (None, *GROUP_SIZES.get(self.weights, ())),
            "symmetric": (True, False) if self.weights == "int4" else (True,),
            "activations": get_args(Activations),
            "kv_cache": get_args(KvCache),
            "attention": get_args(Attention),
            "lm_head": (None, *get_args(Weights)),
            "embeddings": (None, *get_args(Embeddings)),
            "calibrated": (True, False) if self.quantized else (False,),
            "check": (True, False),
            "sampler": get_args(Sampler),
        }
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in allowed[field.name]:
                choices = ", ".join(repr(choice) for choice in allowed[field.name])
                beside = f" with weights={self.weights!r}" if field.name in _OF_WEIGHTS else ""
                raise ConfigError(f"{field.name}: expected one of {choices}{beside}, got {value!r}")

    @property
    def quantized(self) -> bool:
        """Whether the linear layers get integer codes."""
        return self.weights in ("int8", "int4")


def environment() -> dict[str, str]:
    """Return a copy of all variables: what the process was given, or what one that it starts will be."""
    return dict(os.environ)


def replace_environment(variables: Mapping[str, str]) -> None:
    """Make these all the variables that this process has."""
    os.environ.clear()
    os.environ.update(variables)


@contextmanager
def variables_for(library: Mapping[str, str]) -> Iterator[None]:
    """Set variables while a library reads them, but for those that the user has set.

    Afterwards they are gone: processes that this one starts would inherit what was meant for it alone.
    """
    ours = {name: value for name, value in library.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def forced_isa() -> str | None:
    """The value of TORCH_CPULLM_ISA ("avx2", or "avx2,-avxvnni"), which the C++ side obeys when it is loaded."""
    return os.environ.get("TORCH_CPULLM_ISA") or None


def kv_limit_bytes() -> int | None:
    """Bytes one KV pool may grow to, from TORCH_CPULLM_KV_LIMIT; None when it is not set.

    Raises:
        ConfigError: the variable is not a positive whole number.
    """
    return _whole_number("TORCH_CPULLM_KV_LIMIT", 1, "a positive number of bytes")


def slim_tokens() -> int | None:
    """Tokens up to which attention goes by whole score rows, from TORCH_CPULLM_SLIM_TOKENS; None when it is not set.

    Raises:
        ConfigError: the variable is not a whole number.
    """
    return _whole_number("TORCH_CPULLM_SLIM_TOKENS", 0, "a number of tokens, 0 for never")


def comm_timeout_s(argument: float | None = None) -> float:
    """Seconds a rank waits for another one in a collective: the argument, else TORCH_CPULLM_COMM_TIMEOUT, else 5.

    Raises:
        ConfigError: not a positive number.
    """
    given: float | str = os.environ.get("TORCH_CPULLM_COMM_TIMEOUT") or 5.0 if argument is None else argument
    name = "TORCH_CPULLM_COMM_TIMEOUT" if argument is None else "timeout_s"
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{name}: expected a positive number of seconds, got {given!r}")
    return seconds


def comm_transport() -> Transport:
    """How ranks talk to each other, from TORCH_CPULLM_COMM; "auto" when it is not set.

    Raises:
        ConfigError: the variable names no transport.
    """
    text = os.environ.get("TORCH_CPULLM_COMM") or "auto"
    if text not in get_args(Transport):
        choices = ", ".join(get_args(Transport))
        raise ConfigError(f"TORCH_CPULLM_COMM: expected one of {choices}, got {text!r}; unset it for auto")
    return cast("Transport", text)


def cache_folder() -> Path:
    """Where measurements are kept: torch_cpullm in XDG_CACHE_HOME, else ~/.cache, else where temporary files are."""
    home = os.path.expanduser("~")  # noqa: PTH111  (Path.home raises where there is none)
    folder = tempfile.gettempdir() if home == "~" else Path(home) / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or folder) / "torch_cpullm"


def _whole_number(name: str, least: int, what: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdigit() or int(text) < least:
        raise ConfigError(f"{name}: expected {what}, got {text!r}")
    return int(text)
