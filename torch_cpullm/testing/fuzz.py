"""Random problems by the thousand, for the tests that `make fuzz` runs under the sanitizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

_SAME_UP_TO = 1000
"""Cases that are the same on every run; more of them are drawn anew each time."""


def fuzz(problems: SearchStrategy[Any], run: Callable[[Any], None], cases: int) -> None:
    """Call `run` with `cases` problems; what fails is shrunk and shown by hypothesis.

    Raises:
        AssertionError: fewer problems were found than asked for.
    """
    count = 0

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=cases <= _SAME_UP_TO,
        suppress_health_check=list(HealthCheck),
    )
    @given(problems)
    def one(problem: Any) -> None:
        nonlocal count
        count += 1
        run(problem)

    one()
    print(f"\n{count} cases, no finding")  # noqa: T201  (what a run of `make fuzz` is for)
    if count < cases:
        raise AssertionError(f"cases: expected {cases}, hypothesis found {count}")
