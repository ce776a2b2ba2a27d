"""model -> Structure: what is there, found by structure and by computing, never by a model's name."""

from torch_cpullm.detect.detect import detect
from torch_cpullm.detect.structure import (
    AttentionStructure,
    Finding,
    LayerStructure,
    LinearStructure,
    MlpStructure,
    Structure,
)

__all__ = [
    "AttentionStructure",
    "Finding",
    "LayerStructure",
    "LinearStructure",
    "MlpStructure",
    "Structure",
    "detect",
]
