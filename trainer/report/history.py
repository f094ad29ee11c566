"""What a run has left to be read again: its metrics, options, evaluations, and how far it came.

Tolerant, because a run that is still going is read too, and one of an older version: what is missing is left
out, and a line that cannot be read is counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from janus.common.errors import UserError
from trainer.config import CONFIG
from trainer.report.records import METRICS, numbers

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
        """Whether the last planned step is recorded. A run without options is taken as it is."""
        return self.planned_steps is None or self.last_step >= self.planned_steps


def read_history(folder: Path) -> History:
    """Read a run, finished or not. Raises UserError if the folder holds no metrics, or none yet."""
    path = folder / METRICS
    try:
        lines = path.read_bytes().splitlines()
        written = path.stat().st_mtime
    except OSError:
        raise UserError(
            f"{folder}: holds no {METRICS}, so there is nothing to report; give a run's folder"
        ) from None
    records = [record for record in map(_record, lines) if record]
    if not records:
        raise UserError(
            f"{path}: records nothing yet, so there is nothing to report; wait for its first step"
        )
    results = sorted((folder / EVALUATIONS).glob("*.json"))
    return History(
        folder=folder,
        records=records,
        unreadable=len(lines) - len(records),
        written=written,
        config=_mapping(folder / CONFIG, yaml.safe_load),
        evaluations={file.stem: _mapping(file, json.loads) for file in results},
        pictures=sorted((folder / EVALUATIONS).glob("*.png")),
    )


def run_names(folders: Iterable[Path]) -> list[str]:
    """A name for each: the folder's, or the whole path where two are the same."""
    paths = list(folders)
    short = [path.resolve().name for path in paths]
    return [str(path) if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]


def _record(line: bytes) -> dict[str, Any] | None:
    """A record that says what it is and of which step; None for anything else, such as half a line."""
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
