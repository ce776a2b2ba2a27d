"""model -> Structure: what is there, found by structure and by computing, never by a model's name."""

from torch_cpullm.detect.detect import detect
from torch_cpullm.detect.layers import find_candidates
from torch_cpullm.detect.structure import (
    AttentionStructure,
    EmbeddingStructure,
    Finding,
    LayerStructure,
    LinearStructure,
    MlpStructure,
    Structure,
)

__all__ = [
    "AttentionStructure",
    "EmbeddingStructure",
    "Finding",
    "LayerStructure",
    "LinearStructure",
    "MlpStructure",
    "Structure",
    "detect",
    "find_candidates",
]
