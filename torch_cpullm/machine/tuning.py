"""Up to which length whole score rows (slim) beat running maxima (flash) here: measured once a machine, and kept.

The two give the same bits, so the choice is a matter of speed alone and may differ from run to run.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import warnings

import torch

from torch_cpullm import config
from torch_cpullm.machine.machine import detect_machine
from torch_cpullm.ops import attention

_FILE = "tuning.json"
LENGTHS = (256, 512, 1024, 2048, 4096)
_HEADS, _CHANNELS, _ROUNDS = 4, 128, 5
_ALWAYS = 1 << 40
_GAIN = 1.02  # less is noise


def tune() -> int:
    """Measure with torch's number of threads (a second at most), keep the result on disk, and use it from now on.

    Returns:
        Query tokens up to this place in their sequence go by whole score rows; 0: none do. TORCH_CPULLM_SLIM_TOKENS
        overrides what is on disk. If it cannot be kept, a warning says so and it holds for this process.
    """
    chosen, best = attention.slim_tokens(), 0
    try:
        for length in LENGTHS:
            slim_s, flash_s = _race(length)
            if flash_s < _GAIN * slim_s:
                break
            best = length
        chosen = best
    finally:
        attention.set_slim_tokens(chosen)
    _record(best)
    return best


def _record(best: int) -> None:
    """Replace the file in one step, so that another process never reads half of it."""
    file = config.cache_folder() / _FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{_FILE}.{os.getpid()}")
        fresh.write_text(json.dumps({**_recorded(), _key(): best}, indent=1) + "\n", encoding="utf-8")
        fresh.replace(file)
    except OSError as error:
        warnings.warn(
            f"torch_cpullm: the tuning holds for this process only, {file} cannot be written ({error}); "
            "set XDG_CACHE_HOME to a folder that can, or TORCH_CPULLM_SLIM_TOKENS",
            stacklevel=3,
        )


def apply_tuning() -> None:
    """Use TORCH_CPULLM_SLIM_TOKENS, else what `tune` has kept for this CPU, level and thread count, if anything."""
    forced = config.slim_tokens()
    chosen = _recorded().get(_key()) if forced is None else forced
    if chosen is not None:
        attention.set_slim_tokens(chosen)


def _race(length: int) -> tuple[float, float]:
    """Seconds of a causal prefill by whole rows and by running maxima, by turns."""
    pages = -(-length // attention.PAGE_TOKENS)
    kv = attention.KvPages(
        torch.zeros(pages, attention.layer_bytes(_HEADS, _CHANNELS, "int8"), dtype=torch.uint8),
        torch.arange(pages, dtype=torch.int32)[None],
        torch.zeros(1, dtype=torch.int32),
        _HEADS,
        "int8",
    )
    rows_BTHC = torch.randn(1, length, _HEADS, _CHANNELS, generator=torch.Generator().manual_seed(0)).bfloat16()
    attention.kv_append(kv, rows_BTHC, rows_BTHC)
    seconds: dict[int, list[float]] = {_ALWAYS: [], 0: []}
    for _ in range(_ROUNDS):
        for tokens, spent in seconds.items():
            attention.set_slim_tokens(tokens)
            start = time.perf_counter()
            attention.paged_attention(rows_BTHC, kv, _CHANNELS**-0.5)
            spent.append(time.perf_counter() - start)
    return statistics.median(seconds[_ALWAYS]), statistics.median(seconds[0])


def _key() -> str:
    machine = detect_machine()
    return f"{machine.cpu}, {machine.isa}, {torch.get_num_threads()} threads"


def _recorded() -> dict[str, int]:
    """What is on disk; nothing where the file is missing or not ours."""
    try:
        found = json.loads((config.cache_folder() / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(key): value for key, value in found.items() if isinstance(value, int) and value >= 0}
