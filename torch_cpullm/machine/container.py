"""Limits a container sets on this process: cgroup v2 and v1."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2^63


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").split()
    except OSError:
        return None
    return int(text[0]) if text and text[0].lstrip("-").isdigit() else None


def cpu_quota(root: Path = CGROUP) -> float | None:
    """CPUs' worth of time per period that the cgroup allows, None without a quota."""
    try:
        quota, period = (root / "cpu.max").read_text(encoding="ascii").split()[:2]
    except (OSError, ValueError):
        v1_quota, v1_period = (_number(root / f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
        return v1_quota / v1_period if v1_quota and v1_period and v1_quota > 0 else None
    return int(quota) / int(period) if quota.isdigit() else None


def memory_limit_bytes(root: Path = CGROUP) -> int:
    """Bytes this process may use: the machine's memory, or the cgroup's limit where that is lower."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (_number(root / "memory.max"), _number(root / "memory/memory.limit_in_bytes"))
    return min([physical, *(limit for limit in limits if limit and 0 < limit < _UNLIMITED)])
