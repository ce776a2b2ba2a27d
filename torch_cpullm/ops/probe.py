"""The machine's limits, measured by kernels of the library itself."""

from __future__ import annotations

from typing import Literal

import torch

from torch_cpullm.ops.library import kernels

Instruction = Literal["f32", "bf16", "int8", "amx bf16", "amx int8"]


def read_bandwidth(buffer: torch.Tensor, threads: int, repeats: int) -> float:
    """Bytes per second of the best of `repeats` passes over a contiguous float32 `buffer`, shared out to `threads`."""
    return float(kernels.probe_read_bandwidth(buffer, threads, repeats))


def peak(instruction: Instruction, threads: int, milliseconds: int) -> float:
    """Operations per second (two a multiply-add) of all threads; 0.0 where the CPU has no instruction for it.

    "bf16" is vdpbf16ps and "int8" vpdpbusd (or what AVX2 has); the tile instructions go by names of their own.
    """
    return float(kernels.probe_peak(instruction, threads, milliseconds))


def round_trip(iterations: int) -> float:
    """Seconds for a cache line to go to another thread and back; 0.0 where only one thread can run."""
    return float(kernels.probe_round_trip(iterations))
