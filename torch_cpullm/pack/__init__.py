"""The only place that re-lays weights."""

from torch_cpullm.pack.pack import PackCheck, check_packed_linear, pack_linear

__all__ = ["PackCheck", "check_packed_linear", "pack_linear"]
