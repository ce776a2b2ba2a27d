"""Saying something once: a fallback must be visible, and must not fill a log."""

from __future__ import annotations

import warnings

_said: set[str] = set()


class FallbackWarning(UserWarning):
    """A part of an optimised model ran as the original does, slower, for the reason given."""


def warn_once(message: str) -> None:
    """Warn the first time `message` comes up in this process."""
    if message in _said:
        return
    _said.add(message)
    warnings.warn(f"torch_cpullm: {message}", FallbackWarning, stacklevel=3)
