"""What a run has left to be read again: its records (`metrics.jsonl`), options and evaluations.

Tolerant, because a run that is still going is read too, and one of an older version: what is missing is left
out, and a line that cannot be read is counted.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from janus.common.errors import UserError
from janus.common.files import write_text
from trainer.config import CONFIG

METRICS = "metrics.jsonl"
CHANGED = "changed"
"""The kind of record that belongs to a start, not to a step: an option overridden on resume."""

EVALUATIONS = "eval"
"""Folder of a run's evaluations: `.json` ({"metrics": {part: {name: number}}, "baseline": ...}), `.png`."""


@dataclass(frozen=True)
class History:
    """One run. records: the lines of metrics.jsonl; written: when the last one was, in seconds since 1970."""

    folder: Path
    records: Sequence[Mapping[str, Any]]
    unreadable: int
    written: float
    config: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]]
    pictures: Sequence[Path]

    @cached_property
    def series(self) -> Mapping[tuple[str, str], tuple[list[int], list[float]]]:
        """(kind of record, name of a number) → its steps and values, in order of the file."""
        found: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
        for record in self.records:
            for name, value in numbers(record).items():
                steps, values = found.setdefault((record["kind"], name), ([], []))
                steps.append(record["step"])
                values.append(value)
        return found

    def values(self, kind: str, name: str) -> list[float]:
        """Every value of a number in records of that kind, in order; empty if there is none."""
        return self.series.get((kind, name), ([], []))[1]

    def median(self, name: str) -> float | None:
        """The median over the step records; None if none has that number."""
        values = self.values("step", name)
        return statistics.median(values) if values else None

    @property
    def last_step(self) -> int:
        """The last step that was recorded."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def planned_steps(self) -> int | None:
        """How many steps the run was to have; None if its options are not there."""
        steps = self.config.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def finished(self) -> bool:
        """Whether the last planned step is recorded; true for a run without options."""
        return self.planned_steps is None or self.last_step >= self.planned_steps


def read_history(folder: Path) -> History:
    """Read a run, finished or not. Raises UserError if the folder holds no metrics, or none yet."""
    path = folder / METRICS
    try:
        lines = path.read_bytes().splitlines()
        written = path.stat().st_mtime
    except OSError:
        raise UserError(f"{folder}: holds no {METRICS}, so nothing to report; give a run's folder") from None
    records = [record for record in map(_record, lines) if record]
    if not records:
        raise UserError(f"{path}: records nothing yet, so nothing to report; wait for its first step")
    return History(
        folder=folder,
        records=records,
        unreadable=len(lines) - len(records),
        written=written,
        config=_mapping(folder / CONFIG, yaml.safe_load),
        evaluations={
            file.stem: _mapping(file, json.loads) for file in sorted((folder / EVALUATIONS).glob("*.json"))
        },
        pictures=sorted((folder / EVALUATIONS).glob("*.png")),
    )


def keep_records(path: Path, start: int) -> list[dict[str, Any]]:
    """Cut a run's metrics back to step `start` before it resumes there; gives the records kept.

    Later records and a line that was cut off leave the file. A run that starts at 0 keeps none, and CHANGED
    records of this very start are written again by it.
    """
    if not path.exists():
        return []
    records = []
    for record in map(_record, path.read_bytes().splitlines()):
        if record is None:
            break
        if record["step"] < start or (record["step"] == start > 0 and record["kind"] != CHANGED):
            records.append(record)
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    return records


def numbers(content: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every finite number by its path (`loss_per_task/vqa`), except the step."""
    found: dict[str, float] = {}
    for name, value in content.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= numbers(value, f"{path}/")
        elif type(value) in (int, float) and path != "step" and math.isfinite(value):
            found[path] = float(value)
    return found


def _record(line: bytes) -> dict[str, Any] | None:
    """A record with its kind and step; None for anything else, such as half a line."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole and isinstance(record.get("kind"), str) else None


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    """The file's content; empty if it is absent or not whole yet."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
