"""What the stages share, and the build that runs them one after another.

A stage's folder is whole or absent, and a stage is skipped while nothing it depends on has changed:
`stage.json` in the folder holds the fingerprint of the fingerprints of the stages before, the parameters and
the version of the code below. Raw files enter by path, size and modification time (ns): a change that keeps
all three goes unseen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import click

from janus.common.errors import UserError
from janus.common.files import exclusive_lock, write_folder
from pipelines.pool import start_forkserver
from pipelines.rejects import check_reject_rate, gather_rejects, print_summary

CODE_VERSION = 2
"""Raised whenever a stage comes to give other content from the same inputs."""

STAGES = ("ingest", "tokenize", "images", "vq", "write")
"""Modules of `pipelines/stages`, each with `run(…)`, whose parameters are named as the options are."""
POOLED = ("tokenize", "images")
"""Stages whose module the worker processes import."""

STAGE_FILE = "stage.json"


def run_stages(stages: list[str], options: Mapping[str, Any]) -> None:
    """Run the named stages in order; options: by their names on the command line.

    Raises UserError if more than `max_reject_rate` of the rows are unusable, a file cannot be read or
    written, or another process is at work in the same folder.
    """
    work: Path = options["work"]
    busy = f"{work}: another build is at work in this folder; wait for its end, or give another --work"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(work / ".lock", busy):
            if "workers" in options:
                start_forkserver([f"pipelines.stages.{stage}" for stage in stages if stage in POOLED])
            if "model" in options:
                from janus.checkpoint.folder import open_model

                open_model(options["model"])  # a misspelt one is reported before the first stage
            for stage in stages:
                _run(stage, work, options)
    except OSError as error:
        where = error.filename or work
        raise UserError(f"{where}: {error.strerror or error}; finished stages are kept") from error


def _run(stage: str, work: Path, options: Mapping[str, Any]) -> None:
    """Run a stage, stop if too many rows are unusable by now, and sum up after the last one."""
    run = import_module(f"pipelines.stages.{stage}").run  # only now: what it imports may be slow
    done = run(**{name: options[name] for name in signature(run).parameters})
    rejects = gather_rejects(work, STAGES[: STAGES.index(stage) + 1])
    if "max_reject_rate" in options:
        ingested = require_stage("ingest", work)
        lenient = [s["name"] for s in ingested["inputs"]["sources"] if s["may_lack_images"]]
        read = ingested["notes"]["read"]
        check_reject_rate(rejects, read, lenient, options["max_reject_rate"], work)
    if stage == "write":
        print_summary(done["notes"])


def run_stage(
    name: str, work: Path, inputs: Mapping[str, Any], body: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """Run `body(folder)` unless `<work>/<name>` was made from the same inputs; gives stage.json's content.

    inputs: everything the content depends on, as JSON values. body: fills the folder, gives notes for
    stage.json. Raises UserError naming the file if one cannot be read or written.
    """
    mark = fingerprint({"stage": name, "version": CODE_VERSION, **inputs})
    folder = work / name
    if (done := _read(folder)) and done["fingerprint"] == mark:
        click.echo(f"{name}: unchanged, skipped")
        return done
    content = {"fingerprint": mark, "inputs": dict(inputs)}

    def fill(tmp: Path) -> None:
        content["notes"] = body(tmp)
        (tmp / STAGE_FILE).write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        # The old mark goes first: a folder that is half removed must not count as whole.
        (folder / STAGE_FILE).unlink(missing_ok=True)

    try:
        write_folder(folder, fill)
    except OSError as error:
        where = error.filename or work
        raise UserError(
            f"{name}: {where}: {error.strerror or error}; make room, or repair the folder, and run again: "
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


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
