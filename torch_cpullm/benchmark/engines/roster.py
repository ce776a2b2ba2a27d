"""The engines by the names that reports give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch_cpullm.benchmark.engines.hugging_face import Own, Stock
from torch_cpullm.benchmark.engines.llama_cpp import LlamaCpp
from torch_cpullm.benchmark.engines.openvino import OpenVino

if TYPE_CHECKING:
    from torch_cpullm.benchmark.engines.engine import Engine, Format

STOCK, OURS = "transformers", "torch_cpullm"
ENGINES: dict[str, type[Engine]] = {STOCK: Stock, OURS: Own, "llama.cpp": LlamaCpp, "openvino": OpenVino}


@dataclass(frozen=True)
class Contender:
    """An engine in one of its formats."""

    engine: str
    format: Format

    @property
    def name(self) -> str:
        """As reports have it."""
        return f"{self.engine} {self.format.name}"


def contenders(only: str = "") -> list[Contender]:
    """All engines in all formats, or those whose names contain one of the comma-separated words of `only`."""
    words = [word.strip().lower() for word in only.split(",") if word.strip()]
    every = [Contender(name, format) for name, engine in ENGINES.items() for format in engine.formats]
    return [one for one in every if not words or any(word in one.name.lower() for word in words)]
