"""All of a comparison: who takes part, loading, the kinds of work, and the result."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import torch

import torch_cpullm
from torch_cpullm.benchmark.checkpoint import read_config
from torch_cpullm.benchmark.engines.engine import MissingEngineError
from torch_cpullm.benchmark.player import Player, PlayerError
from torch_cpullm.benchmark.race import Lap, Race, Work
from torch_cpullm.benchmark.result import Result
from torch_cpullm.benchmark.sizes import sizes_of
from torch_cpullm.benchmark.standing import Entry, standings
from torch_cpullm.benchmark.steps import step
from torch_cpullm.machine.probe import roofline
from torch_cpullm.ops import introspect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from torch_cpullm.benchmark.engines.roster import Contender

PACKAGES = ("torch", "transformers", "llama-cpp-python", "openvino", "openvino-genai")
_SPARE = 64  # tokens beyond what is asked for, for those that are not timed


@dataclass(frozen=True)
class Programme:
    """What is run.

    Attributes:
        prefills: tokens of prompts, from nothing.
        depths: at which decoding is timed.
        batches: sequences, at the depth of `batch_depth`; 1 is what the above are run with.
        batch_depth: see `batches`.
        continued: depth at which `continued_tokens` more are prefilled; 0: nowhere.
        continued_tokens: see `continued`.
        tokens: new ones in each lap of decoding.
        repetitions: laps of each contender.
    """

    prefills: tuple[int, ...] = (128, 512, 2048)
    depths: tuple[int, ...] = (0, 512, 2048, 8192)
    batches: tuple[int, ...] = (1, 4, 8)
    batch_depth: int = 512
    continued: int = 2048
    continued_tokens: int = 512
    tokens: int = 12
    repetitions: int = 5

    def within(self, context: int) -> Programme:
        """Without what a model of that context cannot hold."""
        fits = context - self.tokens - _SPARE
        return replace(
            self,
            prefills=tuple(n for n in self.prefills if n <= fits),
            depths=tuple(n for n in self.depths if n <= fits),
            continued=self.continued if self.continued + self.continued_tokens <= fits else 0,
            batches=self.batches if self.batch_depth <= fits else (),
        )

    def sessions(self) -> list[tuple[int, list[Work]]]:
        """Batch, and the works to be run with it in one process, the shallow ones first."""
        alone = [Work("prefill", 1, 0, tokens) for tokens in self.prefills]
        for depth in sorted(self.depths):
            if depth == self.continued and depth:
                alone.append(Work("prefill", 1, depth, self.continued_tokens))
            alone.append(Work("decode", 1, depth, self.tokens))
        several = [
            (batch, [Work("decode", batch, self.batch_depth, self.tokens)]) for batch in self.batches if batch > 1
        ]
        return ([(1, alone)] if 1 in self.batches or not self.batches else []) + several


@dataclass
class _Field:
    """Who is still in, and what is known of them."""

    prepared: dict[str, Path]
    contenders: dict[str, Contender]
    entries: dict[str, Entry]
    fallen: dict[str, str]


def contest(
    checkpoint: Path,
    contenders: list[Contender],
    programme: Programme,
    threads: int,
    console: Console,
    keep: Callable[[Result], object],
) -> Result:
    """Run everything; a contender that fails drops out, and the result says why.

    Args:
        checkpoint: that all are made from.
        contenders: those not installed are left out.
        programme: what is run.
        threads: of each contender.
        console: for progress.
        keep: told the result so far after each kind of work, so that an interrupt loses little.
    """
    torch.set_num_threads(threads)
    config = read_config(checkpoint)
    field = _prepare(checkpoint, contenders, console)
    limits, sizes = roofline(threads), sizes_of(config)
    programme = programme.within(getattr(config, "max_position_embeddings", None) or 1 << 20)
    laps: list[Lap] = []

    def result() -> Result:
        return Result(
            shape=checkpoint.name,
            when=datetime.now(timezone.utc).isoformat(timespec="minutes"),
            threads=threads,
            isa=introspect.isa_level(),
            info=str(torch_cpullm.info()),
            versions=_versions(),
            roofline=limits,
            entries=field.entries,
            fallen=field.fallen,
            standings=standings(laps, field.entries, sizes, limits),
            laps=laps,
        )

    for batch, works in programme.sessions():
        race = Race({}, config.get_text_config(decoder=True).vocab_size)
        context = max(work.depth + work.tokens for work in works) + _SPARE
        _load(race, field, Seats(threads, batch, context), console)
        for work in works:
            with step(console, work.name) as advance:
                race.run(work, programme.repetitions, advance)
            laps += race.laps
            race.laps.clear()
            keep(result())
        _leave(race, field, console)
    return result()


@dataclass(frozen=True)
class Seats:
    """How all contenders are opened."""

    threads: int
    batch: int
    context: int


def _prepare(checkpoint: Path, contenders: list[Contender], console: Console) -> _Field:
    field = _Field({}, {}, {}, {})
    for contender in contenders:
        player = Player(contender)
        try:
            with step(console, f"preparing {contender.name}"):
                field.prepared[contender.name] = player.prepare(checkpoint)
            field.contenders[contender.name] = contender
        except (MissingEngineError, PlayerError) as error:
            field.fallen[contender.name] = str(error)
            console.print(f"{contender.name} is left out: {error}", style="yellow", markup=False, soft_wrap=True)
        finally:
            player.close()
    return field


def _load(race: Race, field: _Field, seats: Seats, console: Console) -> None:
    for name, contender in list(field.contenders.items()):
        player = Player(contender)
        try:
            with step(console, f"loading {name}"):
                opened = player.open(field.prepared[name], seats.threads, seats.batch, seats.context)
        except (MissingEngineError, PlayerError) as error:
            _drop(field, name, str(error), console)
            player.close()
            continue
        race.players[name] = player
        bits = contender.format.bits
        field.entries.setdefault(name, Entry(bits, opened.kv_bits, opened.weight_bytes, opened.load_s, 0))


def _leave(race: Race, field: _Field, console: Console) -> None:
    """Note what memory they took, and end them."""
    for name, player in race.players.items():
        try:
            peak = max(player.peak_bytes(), field.entries[name].peak_bytes)
            field.entries[name] = replace(field.entries[name], peak_bytes=peak)
        except PlayerError as error:
            race.fallen[name] = str(error)
        player.close()
    for name, reason in race.fallen.items():
        _drop(field, name, reason, console)


def _drop(field: _Field, name: str, reason: str, console: Console) -> None:
    field.contenders.pop(name, None)
    field.fallen[name] = reason
    console.print(f"{name} drops out: {reason}", style="yellow", markup=False, soft_wrap=True)


def _versions() -> dict[str, str]:
    installed = {found.name: found.version for found in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}
