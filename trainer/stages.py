"""The report's numbers for Janus-Pro's three stages (technical report, table 2).

They are defaults only: a recipe or the command line may replace any of them. What a stage trains is fixed,
and stands in `janus/model/stages.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """ratio: samples per task in a mixed step. warmup_steps, steps, batch_size: the report's own."""

    learning_rate: float
    warmup_steps: int
    ratio: Mapping[str, int]
    steps: int
    batch_size: int


STAGES = {
    1: Stage(1e-3, 600, {"vqa": 1, "text": 0, "t2i": 3}, 20_000, 256),
    2: Stage(1e-4, 5_000, {"vqa": 2, "text": 3, "t2i": 5}, 360_000, 512),
    3: Stage(4e-5, 0, {"vqa": 5, "text": 1, "t2i": 4}, 80_000, 128),
}
