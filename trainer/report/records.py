"""The records of `metrics.jsonl`: where they are written, and the numbers in one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

METRICS = "metrics.jsonl"


def numbers(content: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every finite number by its path (`loss_per_task/vqa`), but the step."""
    found: dict[str, float] = {}
    for name, value in content.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= numbers(value, f"{path}/")
        elif type(value) in (int, float) and path != "step" and math.isfinite(value):
            found[path] = float(value)
    return found
