"""Llama-2-70B on 2, 4 and 8 sockets of a Xeon 8563C: the model of benchmark/scaling.py, with what it has to assume."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from torch_cpullm.benchmark.scaling import Costs, Decoder, Format, between_sockets, bytes_read, step_time
from torch_cpullm.benchmark.shapes import config_of
from torch_cpullm.formats import BF16, INT4, INT8, WeightFormat
from torch_cpullm.ops.linear import pack

SHAPE = "llama-2-70b"
SOCKETS = (2, 4, 8)
PAPER_MS = {2: 249.7, 8: 87.7}
"""arXiv 2407.07304, milliseconds a token; compared with bf16, the format whose bytes fit its two sockets."""

THEORETICAL = 8 * 5600e6 * 8  # eight channels of DDR5-5600, eight bytes each: 358 GB/s a socket
SUSTAINED = 0.85
"""What reads reach of it, all cores at work: refresh takes 5 %, changes of rows and banks the rest. An assumption; a
probe on such a machine (torch_cpullm.machine.probe.roofline) would replace it."""

DISTANCES = (2.0, 2.5, 3.0)
"""A cache line takes so many times as long between sockets as between two cores here: the band, and its middle."""

CONTEXT = 1024
KV_BITS = {"bf16": 16.0, "int8": 8.25, "int4": 8.25}  # int8: a float for each token and head of 128
_FORMATS = {"bf16": (BF16, BF16), "int8": (INT8, INT8), "int4": (INT4, INT8)}  # of layers, of the head


@dataclass(frozen=True)
class Ahead:
    """Milliseconds a token on `sockets` sockets, at each of DISTANCES, and the parts of the one in the middle."""

    weights: str
    sockets: int
    milliseconds: tuple[float, ...]
    memory_ms: float
    sums_ms: float
    host_ms: float


def bits_of(format: WeightFormat) -> float:
    """Bits of an element as packed, scales included."""
    weight = torch.randn(1024, 8192)
    return 8 * pack(weight, None, format).numel() / weight.numel()


def outlook(formats: dict[str, Any]) -> list[Ahead]:
    """For every format that was measured: its share of the bandwidth, sums and the host's time are taken from there."""
    decoder = Decoder.of(config_of(SHAPE))
    found = []
    for weights, seen in formats.items():
        layers, head = (bits_of(format) for format in _FORMATS[weights])
        format = Format(layers, head, KV_BITS[weights])
        pair_s = 1e-6 * statistics.median(seen["sums_us"][str(decoder.hidden)])
        share, exchange_s = (statistics.median(lap[name] for lap in seen["laps"]) for name in ("share", "exchange_s"))
        for sockets in SOCKETS:
            read = bytes_read(decoder, format, CONTEXT, sockets)
            steps = [
                step_time(
                    decoder,
                    read,
                    Costs(
                        bandwidth=THEORETICAL * SUSTAINED,
                        share=min(1.0, share),  # one core alone reads ahead better in kernels; channels give no more
                        reduce_s=between_sockets(pair_s, sockets, distance),
                        exchange_s=between_sockets(exchange_s, sockets, distance),
                        layer_s=seen["host"]["layer_s"],
                        token_s=seen["host"]["token_s"],
                    ),
                )
                for distance in DISTANCES
            ]
            middle = steps[len(steps) // 2]
            parts = (1e3 * part for part in (middle.memory_s, middle.meetings_s, middle.host_s))
            found.append(Ahead(weights, sockets, tuple(1e3 * each.seconds for each in steps), *parts))
    return found


def outlook_table(ahead: list[Ahead]) -> Table:
    """One row for each format and number of sockets, beside the paper's figures."""
    near, _, far = DISTANCES
    table = Table(title=f"{SHAPE}, milliseconds a token; lines between sockets take {near:g} to {far:g} times as long")
    for heading in ("", "sockets", "model", "band", "memory", "sums", "host", "paper", "sums that would explain it"):
        table.add_column(heading, justify="right")
    sums = 2 * config_of(SHAPE).num_hidden_layers
    for one in ahead:
        paper = PAPER_MS.get(one.sockets) if one.weights == "bf16" else None
        explained = f"{1e3 * (paper - one.memory_ms - one.host_ms) / sums:.0f} us each" if paper else ""
        low, middle, high = one.milliseconds
        table.add_row(
            *(one.weights, str(one.sockets), f"{middle:.1f}", f"{low:.1f} to {high:.1f}"),
            *(f"{part:.1f}" for part in (one.memory_ms, one.sums_ms, one.host_ms)),
            *(f"{paper:.1f}" if paper else "", explained),
        )
    return table
