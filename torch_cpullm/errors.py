"""Every exception this package raises on purpose: the argument, what was expected, what came, and a remedy."""

from __future__ import annotations


class TorchCpuLlmError(Exception):
    """Base of all errors of torch_cpullm."""


class ConfigError(TorchCpuLlmError, ValueError):
    """A choice in `Config` or an environment variable has a value that does not exist."""


class UnsupportedModelError(TorchCpuLlmError, TypeError):
    """The object given is nothing this package can optimise, explain or restore."""


class PackedWeightError(TorchCpuLlmError, ValueError):
    """A packed weight cannot do what was asked of it: another device, another shape, another layout version."""


class OutOfPagesError(TorchCpuLlmError, MemoryError):
    """The KV pool has reached its limit. The pool is as it was before the call that raised."""


class StoredModelError(TorchCpuLlmError, ValueError):
    """A folder does not hold a model that this version of torch_cpullm has saved, or not whole."""


class CollectiveError(TorchCpuLlmError, RuntimeError):
    """A rank of a collective is gone, late, or asked for something else. The group cannot be used any more."""


class RankError(TorchCpuLlmError, RuntimeError):
    """Another rank of this job, or what ranks meet by, is missing, late or gone."""
