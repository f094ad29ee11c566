"""What every stage shares: a folder that is whole or absent, and skipped when nothing has changed.

A stage writes into `<work>/.tmp-<stage>` and the folder is renamed to `<work>/<stage>` when whole.
`stage.json` in it holds the fingerprint of everything its content depends on: the fingerprints of
the stages before, the parameters, and the version of the code below. Raw files enter by path, size
and modification time (ns): a change that keeps all three goes unseen.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from janus.common.errors import UserError

CODE_VERSION = 2
"""Raised whenever a stage comes to give other content from the same inputs."""

STAGES = ("ingest", "tokenize", "images", "vq", "write")
STAGE_FILE = "stage.json"


def run_stage(
    name: str, work: Path, inputs: Mapping[str, Any], body: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """Run `body(folder)` unless `<work>/<name>` was made from the same inputs; gives stage.json's content.

    inputs: everything the content depends on, as JSON values. body: fills the folder, gives notes for
    stage.json. Raises UserError naming the file if one cannot be read or written.
    """
    mark = fingerprint({"stage": name, "version": CODE_VERSION, **inputs})
    folder, beside = work / name, work / f".tmp-{name}"
    if (done := _read(folder)) and done["fingerprint"] == mark:
        click.echo(f"{name}: unchanged, skipped")
        return done
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        content = {"fingerprint": mark, "inputs": dict(inputs), "notes": body(beside)}
        (beside / STAGE_FILE).write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        # The mark first: a folder that is half removed must not be taken for whole.
        (folder / STAGE_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)  # it would take the room that has to be made
        where = error.filename or work
        raise UserError(
            f"{name}: {where}: {error.strerror or error}; make room, or mend the folder, and run again: "
            "finished stages are kept"
        ) from error
    return content


def require_stage(name: str, work: Path) -> dict[str, Any]:
    """stage.json of a finished stage. Raises UserError if it has not run."""
    if done := _read(work / name):
        return done
    raise UserError(f"{work / name}: stage {name} has not run; `pipelines {name}` or `pipelines build` does")


def fingerprint(content: Mapping[str, Any]) -> str:
    """sha256 of JSON values, as hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe_files(files: list[Path]) -> list[list[Any]]:
    """Path, size and modification time of each file: what stands for its content."""
    stats = [(path, path.stat()) for path in files]
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
