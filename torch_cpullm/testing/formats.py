"""Every weight format by its short name: what tests and benches run over."""

from __future__ import annotations

from torch_cpullm.formats import BF16, F32, WeightFormat


def _all() -> list[WeightFormat]:
    int8 = [WeightFormat("int8", act, group) for act in ("int8", "bf16") for group in (0, 32, 64, 128)]
    int4 = [
        WeightFormat("int4", act, group, asymmetric)
        for act in ("int8", "bf16")
        for group in (32, 64, 128)
        for asymmetric in (False, True)
    ]
    return [F32, BF16, *int8, *int4]


FORMATS: dict[str, WeightFormat] = {str(format): format for format in _all()}
EACH_KERNEL = ["f32", "bf16", "int8", "int8 g64", "int4 g32", "int4 g128 asymmetric", "int4 g64 a16"]
"""Names of one format for each kernel of the linear family, where all of them would take too long."""
