"""Every ISA level, in processes of their own: the forced level is the one that runs, and its bits are the others' bits.

Kernels are written once against lanes whose operations agree bit for bit (csrc/isa): multiply-adds are fused and
reductions fold halves. The exceptions are the products of bf16: vdpbf16ps adds a pair per step, AMX 32 in one.
"""

import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import torch_cpullm
from torch_cpullm.ops import introspect
from torch_cpullm.testing.kernels_seen import KERNELS_SEEN

SAMPLE = Path(__file__).with_name("isa_sample.py")
PACKAGE = Path(torch_cpullm.__file__).parent  # the one under test, which need not be the one here
# The last two hide one feature, so that the kernels for CPUs without it run here as well.
LEVELS = ["scalar", "avx2", "avx512", "amx", "avx2,-avxvnni", "avx512,-avx512vnni,-avx512bf16"]
# What an ISA word may be on each level: a level holds the ones below it.
WORDS = {
    "scalar": {"scalar"},
    "avx2": {"avx2", "avxvnni"},
    "avx512": {"avx512", "avx512vnni", "avx512bf16"},
    "amx": {"avx512", "avx512vnni", "avx512bf16", "amx"},
    "avx2,-avxvnni": {"avx2"},
    "avx512,-avx512vnni,-avx512bf16": {"avx512", "avx2", "avxvnni"},
}


# Of the size of what bf16 products give, where they add a pair at once: they flush denormals and round sums less often.
# In attention a weight may then round to its other neighbour in bf16.
TOLERANCES = {"linear": 1e-5, "attention": 2e-3}


def can_run(level):
    needed = {
        "scalar": set(),
        "avx2": {"avx2", "fma", "f16c"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
        "amx": {"avx512vnni", "amxtile", "amxint8", "amxbf16"},
    }
    return needed[level.split(",")[0]] <= set(introspect.cpu_features())


def run(level, file):
    environment = {**os.environ, "TORCH_CPULLM_ISA": level, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run(
        [sys.executable, str(SAMPLE), str(file)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("isa")
    levels, found = list(filter(can_run, LEVELS)), {}
    with ThreadPoolExecutor(2) as pool:  # what takes time is starting Python: 4 s, on one core
        processes = pool.map(run, levels, (folder / level for level in levels))
        for level, finished in zip(levels, processes, strict=True):
            assert finished.returncode == 0, finished.stderr
            found[level] = torch.load(folder / level, weights_only=True)
            KERNELS_SEEN[level] = set(found[level]["ran"])
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_the_forced_level_is_the_one_that_ran(level, samples):
    if level not in samples:
        pytest.skip(f"this CPU lacks what {level} needs")
    assert samples[level]["level"] == level.split(",")[0]
    words = {name.rsplit("__", 1)[-1] for name in samples[level]["ran"]}
    assert words
    assert words <= WORDS[level], f"kernels of other levels ran: {words - WORDS[level]}"


@pytest.mark.parametrize("level", LEVELS[1:])
def test_bits_are_those_of_the_scalar_definition(level, samples):
    if level not in samples:
        pytest.skip(f"this CPU lacks what {level} needs")
    ran = samples[level]["ran"]
    pairs_at_once = any("bf16" in name.split("__")[0] and name.endswith(("bf16", "amx")) for name in ran)
    for name, expected in samples["scalar"]["results"].items():
        got = samples[level]["results"][name]
        family, *words = name.split()
        if pairs_at_once and family in TOLERANCES and ("bf16" in words[0] or "a16" in words) and words[-1] != "pages":
            assert float((got - expected).norm()) <= TOLERANCES[family] * float(expected.norm()), name
        else:
            assert torch.equal(got, expected), f"{name}: {int((got != expected).sum())} of {got.numel()} differ"


@functools.cache
def refuse(word):
    return run(word, "/dev/null")


@pytest.mark.parametrize("word", ["avx1024", "avx2,-sse9", "-"])
def test_an_unknown_word_is_refused(word):
    finished = refuse(word)
    assert finished.returncode != 0
    assert "TORCH_CPULLM_ISA: expected scalar, avx2, avx512 or amx" in finished.stderr
    assert f"got '{word}'" in finished.stderr


def test_a_refusal_is_an_exception_and_no_crash():
    assert refuse("avx1024").returncode == 1
    assert "Traceback" in refuse("avx1024").stderr
