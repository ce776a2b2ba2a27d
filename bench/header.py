"""What every result starts with: when it was measured, and on what."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import torch_cpullm


def header() -> dict[str, Any]:
    """Minute in UTC, and torch_cpullm.info() as text."""
    return {"when": datetime.now(timezone.utc).isoformat(timespec="minutes"), "info": str(torch_cpullm.info())}
