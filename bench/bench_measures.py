"""What four measures of arXiv 2407.07304 save (sections 2.2, 2.3), each beside what there would be without it.

    python -m bench.bench_measures                    2 ranks, one on each of the first cores (1 minute)

    token ids, not embeddings     broadcast of ids; of the rows that the table has for them
    candidates, not logits        greedy and top_k (the fused sampler), half of 128 k words on each; all logits
    sums inside the blocks        the projection writes into the transport, the sum takes the residual in; a product of
                                  its own, all_reduce_ and an addition
    one sum a parallel layer      a layer whose halves read the same hidden; one whose halves follow each other

The product is in neither side of the third. Microseconds, medians of laps by turns, of the slowest rank. Writes
bench/results/measures-N.json.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.distributed import Store
from transformers import LogitsProcessorList
from transformers.generation.logits_process import TopKLogitsWarper

from bench.bench_collectives import opened
from bench.header import header
from bench.inside_layers import sums_us
from torch_cpullm.distributed.gathering import Gathering
from torch_cpullm.generate.candidates import SharedChoice
from torch_cpullm.generate.choice import Choice
from torch_cpullm.generate.ranks import Ranks
from torch_cpullm.generate.sampler import FusedSampler
from torch_cpullm.ops.comm import all_reduce_, barrier, broadcast_
from torch_cpullm.plan.shard import Shard, share_of
from torch_cpullm.testing.ranks import run_ranks

ROOT = Path(__file__).parent.parent
HIDDEN, WORDS, TOP_K, PROMPT = 4096, 128_256, 50, 512
CALLS, CALLS_OF_MANY, SUMS = 60, 8, 80

Call = Callable[[], object]
Laps = list[float]


def burst_us(call: Call, group: int, calls: int) -> float:
    """Median microseconds of calls that start together."""
    barrier(group)
    spent = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return 1e6 * statistics.median(spent)


def by_turns(first: Call, second: Call, group: int, calls: int, laps: int) -> tuple[Laps, Laps]:
    """Microseconds of each lap of both; the first lap of each is not counted."""
    found: tuple[Laps, Laps] = ([], [])
    for lap, (of_call, call) in itertools.product(range(laps + 1), zip(found, (first, second), strict=True)):
        us = burst_us(call, group, calls)
        if lap:
            of_call.append(us)
    return found


def tokens(rows: int, group: int, laps: int) -> tuple[Laps, Laps]:
    """Ids against their embeddings."""
    ids_B = torch.zeros(rows, dtype=torch.long)
    hidden_BD = torch.zeros(rows, HIDDEN, dtype=torch.bfloat16)
    calls = CALLS if rows < PROMPT else CALLS_OF_MANY
    return by_turns(lambda: broadcast_(ids_B, 0, group), lambda: broadcast_(hidden_BD, 0, group), group, calls, laps)


def words(top_k: int, rows: int, ranks: Ranks, laps: int) -> tuple[Laps, Laps]:
    """Choosing among candidates of all ranks against gathering all logits, of which rank 0 chooses."""
    spans = tuple(share_of(WORDS, Shard(rank, ranks.size)) for rank in range(ranks.size))
    gathering = Gathering(ranks.group, spans)
    processors = LogitsProcessorList([TopKLogitsWarper(top_k)] if top_k else [])
    choice = Choice(processors, bool(top_k), FusedSampler.of(processors) if top_k else None)
    among_candidates, among_all = SharedChoice(choice, ranks, gathering), SharedChoice(choice, ranks, None)
    ids_BT = torch.zeros(rows, 1, dtype=torch.long)
    own_BN = torch.randn(rows, len(spans[ranks.rank]), generator=torch.Generator().manual_seed(ranks.rank))
    return by_turns(
        lambda: among_candidates.tokens(ids_BT, own_BN),
        lambda: among_all.tokens(ids_BT, gathering.gather(own_BN)),
        ranks.group,
        CALLS,
        laps,
    )


def sums(rows: int, group: int, laps: int) -> tuple[Laps, Laps]:
    """A sum inside a block against operators of its own for sum and residual, both as means of many."""
    term_BD, hidden_BD = (torch.zeros(rows, HIDDEN, dtype=torch.bfloat16) for _ in range(2))

    def apart() -> None:
        for _ in range(SUMS):
            all_reduce_(term_BD, group)
            hidden_BD.add_(term_BD)

    inside = [us / 2 for us in sums_us(rows, HIDDEN, torch.bfloat16, group, laps)]
    return inside, [burst_us(apart, group, CALLS_OF_MANY) / SUMS for _ in range(laps + 1)][1:]


def layers(rows: int, group: int, laps: int) -> tuple[Laps, Laps]:
    """What sums add to a layer with one, and to one with two."""
    one, two = (sums_us(rows, HIDDEN, torch.bfloat16, group, laps, parallel) for parallel in (True, False))
    return one, two


def measure(rank: int, size: int, store: Store, laps: int) -> dict[str, dict[str, tuple[Laps, Laps]]]:
    """Laps with and without each measure, by transport and measure."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[rank % len(cpus)]})
    torch.set_num_threads(1)
    return {
        name: {
            "token ids, 1 row": tokens(1, group, laps),
            "token ids, a prompt of 512": tokens(PROMPT, group, laps),
            "candidates, greedy, 1 row": words(0, 1, Ranks(rank, size, group), laps),
            f"candidates, top_k {TOP_K}, 1 row": words(TOP_K, 1, Ranks(rank, size, group), laps),
            f"candidates, top_k {TOP_K}, 8 rows": words(TOP_K, 8, Ranks(rank, size, group), laps),
            "sums inside blocks, 1 row": sums(1, group, laps),
            "sums inside blocks, 8 rows": sums(8, group, laps),
            "one sum a parallel layer, 1 row": layers(1, group, laps),
            "one sum a parallel layer, 8 rows": layers(8, group, laps),
        }
        for name, group in opened(rank, size, store).items()
    }


def main(
    ranks: Annotated[int, typer.Option(min=2, help="processes, each on one core while there are enough")] = 2,
    laps: Annotated[int, typer.Option(min=1, help="of each measure and transport")] = 9,
    output: Annotated[Path | None, typer.Option(help="default: bench/results/measures-RANKS.json")] = None,
) -> None:
    """Measure, print a table, write the laps."""
    of_ranks: list[dict[str, dict[str, tuple[Laps, Laps]]]] = run_ranks(measure, ranks, laps, timeout_s=1800.0)
    found = {
        transport: {
            name: {
                side: [
                    round(max(lap), 2) for lap in zip(*(each[transport][name][at] for each in of_ranks), strict=True)
                ]
                for at, side in enumerate(("with", "without"))
            }
            for name in measures
        }
        for transport, measures in of_ranks[0].items()
    }
    table = Table(title=f"{ranks} ranks, hidden {HIDDEN}, {WORDS:,} words, microseconds")
    table.add_column("measure")
    for transport in found:
        table.add_column(f"{transport}: with", justify="right")
        table.add_column("without", justify="right")
    for name in next(iter(found.values())):
        sides = [found[transport][name][side] for transport in found for side in ("with", "without")]
        table.add_row(name, *(f"{statistics.median(laps_us):,.1f}" for laps_us in sides))
    Console(width=120).print(table)
    target = output or ROOT / "bench" / "results" / f"measures-{ranks}.json"
    content = {"ranks": ranks, "hidden": HIDDEN, "words": WORDS, "top_k": TOP_K, "us": found}
    target.write_text(json.dumps(header() | content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
