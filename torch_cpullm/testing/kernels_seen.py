"""Which kernels ran in processes that tests started, by the ISA level forced on them; read by tests/conftest.py."""

from __future__ import annotations

KERNELS_SEEN: dict[str, set[str]] = {}
