"""The only place that re-lays weights: rounding to nearest, GPTQ, outlier channels, and what each of them costs."""

from torch_cpullm.pack.pack import PackCheck, check_packed_linear, pack_linear, random_rows
from torch_cpullm.pack.smooth import choose_multiplier

__all__ = ["PackCheck", "check_packed_linear", "choose_multiplier", "pack_linear", "random_rows"]
