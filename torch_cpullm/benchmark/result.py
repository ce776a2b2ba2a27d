"""What a race has found, and its form as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch_cpullm.benchmark.race import Lap, Work
from torch_cpullm.benchmark.standing import Entry, Standing
from torch_cpullm.machine.probe import Roofline


@dataclass(frozen=True)
class Result:
    """One shape on one machine.

    Attributes:
        shape: its name.
        when: minute in UTC.
        threads: each contender's.
        isa: the level that torch_cpullm ran at.
        info: torch_cpullm.info() as text.
        versions: of packages.
        roofline: the limits of those threads.
        entries: by contender.
        fallen: those that dropped out, and why; those that are not installed, and the remedy.
        standings: the figures.
        laps: what they are of.
    """

    shape: str
    when: str
    threads: int
    isa: str
    info: str
    versions: dict[str, str]
    roofline: Roofline
    entries: dict[str, Entry]
    fallen: dict[str, str]
    standings: list[Standing]
    laps: list[Lap]

    def write(self, file: Path) -> None:
        """As JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Result:
        """From what `write` has written."""
        raw = json.loads(file.read_text(encoding="utf-8"))
        raw["roofline"] = Roofline(**raw["roofline"])
        raw["entries"] = {name: Entry(**entry) for name, entry in raw["entries"].items()}
        for key, kind in (("standings", Standing), ("laps", Lap)):
            raw[key] = [kind(**{**one, "work": Work(**one["work"])}) for one in raw[key]]
        return cls(**raw)
