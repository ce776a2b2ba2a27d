"""The roofline probes: plausible figures, and sentences for misuse. No figure is asserted as a speed."""

import pytest
import torch

from torch_cpullm.machine.probe import classify, cold_bytes, cold_read, probe, roofline
from torch_cpullm.ops import introspect
from torch_cpullm.ops import probe as ops


def test_probe_and_roofline():
    seen = probe(10)
    assert seen.read_bandwidth > 1e8
    assert seen.scaling > 0.2
    limits = roofline(1, 5)
    assert limits.f32 > 1e8
    assert (limits.bf16 > 0) == ("avx512bf16" in introspect.cpu_features())
    assert (limits.int8 > 0) == ("avx2" in introspect.cpu_features())
    assert (limits.amx_bf16 > 0) == (limits.amx_int8 > 0) == ("amxint8" in introspect.cpu_features())


def test_what_counts_as_cold():
    assert cold_bytes() >= 128 << 20
    assert cold_read(1, 4 << 20) > 1e8


@pytest.mark.parametrize(
    ("scaling", "trip", "placement"),
    [
        (1.0, 3e-8, "SMT siblings"),
        (2.0, 9e-8, "one complex"),
        (2.0, 4e-7, "separate complexes"),
        (1.0, 0.0, "one thread"),
    ],
)
def test_placements(scaling, trip, placement):
    assert classify(scaling, trip) == placement


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: probe(1), "milliseconds"),
        (lambda: ops.peak("fp8", 1, 5), "instruction"),
        (lambda: ops.peak("f32", 0, 5), "threads"),
        (lambda: ops.round_trip(0), "iterations"),
        (lambda: ops.read_bandwidth(torch.zeros(10), 1, 1), "buffer"),
    ],
)
def test_misuse(call, words):
    with pytest.raises(ValueError, match=words):
        call()
