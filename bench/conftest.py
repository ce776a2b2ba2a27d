"""After a run of bench_ops.py: a table of every contest, ours against each rival."""

from __future__ import annotations

from typing import Any

import pytest
import torch

THREADS = 2


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(THREADS)


def _rate(info: dict[str, Any], seconds: float) -> str:
    if info["operations"]:
        return f"{info['operations'] / seconds / 1e9:7.0f} GOP/s"
    return f"{info['bytes_read'] / seconds / 1e9:7.1f} GB/s "


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    contests = [bench for bench in session.benchmarks if "rivals_s" in bench.extra_info] if session else []
    if not contests:
        return
    terminalreporter.section(f"by turns, {torch.get_num_threads()} threads, medians; ratio above 1: ours is faster")
    for bench in contests:
        info, ours_s = bench.extra_info, bench.stats.median
        terminalreporter.line(f"{bench.name}  ({', '.join(info['placement'])})")
        terminalreporter.line(f"    {'torch_cpullm':34}{1e6 * ours_s:10.1f} us {_rate(info, ours_s)}")
        for name, seconds in info["rivals_s"].items():
            terminalreporter.line(f"    {name:34}{1e6 * seconds:10.1f} us{'':15}{seconds / ours_s:6.2f}x")
