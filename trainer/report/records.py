"""The files of a run that are read again: records (`metrics.jsonl`), options and evaluations.

Reading is tolerant, because the run may be in progress or of an older version: what is missing is left out,
and a line that cannot be read is counted.
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from janus.common.errors import UserError
from janus.common.files import write_text
from janus.prompts import TASK_ORDER
from trainer.config import CONFIG

METRICS = "metrics.jsonl"
CHANGED = "changed"  # the kind of record that belongs to a start, not to a step: an overridden option
EVALUATIONS = "eval"  # folder of `.json` ({"metrics": {part: {name: number}}, "baseline": ...}) and `.png`


@dataclass(frozen=True)
class History:
    """One run. records: lines of metrics.jsonl; unreadable: how many others; written: when the last was."""

    folder: Path
    name: str
    records: Sequence[Mapping[str, Any]]
    unreadable: int
    written: datetime
    config: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]]
    pictures: Sequence[Path]

    @cached_property
    def series(self) -> Mapping[tuple[str, str], tuple[list[int], list[float]]]:
        """(kind of record, name of a number) → its steps and values, in the file's order."""
        found: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
        for record in self.records:
            for name, value in numbers(record).items():
                steps, values = found.setdefault((record["kind"], name), ([], []))
                steps.append(record["step"])
                values.append(value)
        return found

    def values(self, kind: str, name: str) -> list[float]:
        """Every value of a number in records of that kind, in order."""
        return self.series.get((kind, name), ([], []))[1]

    def median(self, name: str) -> float | None:
        """The median over the step records; None if none has that number."""
        values = self.values("step", name)
        return statistics.median(values) if values else None

    @property
    def losses(self) -> list[tuple[str, float, float, str]]:
        """Task, first and last loss, and its kind: validation, or training if there is no validation."""
        rows = []
        for task in TASK_ORDER:
            validation = self.values("validation", f"loss_per_task/{task}")
            if values := validation or self.values("step", f"loss_per_task/{task}"):
                rows.append((task, values[0], values[-1], "validation" if validation else "training"))
        return rows

    @property
    def last_step(self) -> int:
        return max(record["step"] for record in self.records)

    @property
    def planned_steps(self) -> int | None:
        steps = self.config.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def finished(self) -> bool:
        """Whether the last planned step is recorded; true for a run without its options."""
        return self.planned_steps is None or self.last_step >= self.planned_steps


def read_history(folder: Path) -> History:
    """Read a run, finished or not. Raises UserError if the folder holds no metrics, or none yet."""
    path = folder / METRICS
    try:
        lines = path.read_bytes().splitlines()
        written = datetime.fromtimestamp(path.stat().st_mtime)
    except OSError:
        raise UserError(f"{folder}: holds no {METRICS}, so nothing to report; give a run's folder") from None
    records = [record for record in map(_record, lines) if record]
    if not records:
        raise UserError(f"{path}: records nothing yet, so nothing to report; wait for its first step")
    unreadable, config = len(lines) - len(records), _mapping(folder / CONFIG, yaml.safe_load)
    results, pictures = (sorted((folder / EVALUATIONS).glob(ends)) for ends in ("*.json", "*.png"))
    evaluations = {file.stem: _mapping(file, json.loads) for file in results}
    name = folder.resolve().name
    return History(folder, name, records, unreadable, written, config, evaluations, pictures)


def keep_records(path: Path, start: int) -> list[dict[str, Any]]:
    """Cut a run's metrics back to step `start` before it resumes there; returns the records kept.

    A line that was cut off leaves the file too. A run that starts at 0 keeps none. CHANGED records of step
    `start` go, because the start writes them again.
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
    with suppress(ValueError):
        match json.loads(line):
            case {"kind": str(), "step": int()} as record:
                return record
    return None


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The file's content; empty if it is absent, not whole yet, or no mapping."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
