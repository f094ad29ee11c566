"""The stages one after another, the check of the reject rate between them, and the summary.

Each stage's module is imported when its turn comes: what one needs, the others need not wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from janus.common.errors import UserError
from janus.common.files import exclusive_lock
from pipelines.pool import start_forkserver
from pipelines.rejects import check_reject_rate, gather_rejects
from pipelines.stage import require_stage

Options = Mapping[str, Any]

_WRITE = ("out", "tokenizer", "format", "keep_images", "validation_fraction", "seed")


def _ingest(options: Options) -> Any:
    from pipelines.stages.ingest import ingest

    return ingest(options["data"], options["work"], options["sources"])


def _tokenize(options: Options) -> Any:
    from pipelines.stages.tokenize import tokenize

    return tokenize(options["work"], options["tokenizer"], options["max_length"], options["workers"])


def _images(options: Options) -> Any:
    from pipelines.stages.images import prepare_images

    return prepare_images(options["work"], options["tokenizer"], options["workers"])


def _vq(options: Options) -> Any:
    from pipelines.stages.vq import encode_images

    return encode_images(options["work"], options["model"])


def _write(options: Options) -> Any:
    from pipelines.stages.write import WriteOptions, write

    return write(options["work"], WriteOptions(**{name: options[name] for name in _WRITE}))


RUN: dict[str, Callable[[Options], Any]] = {
    "ingest": _ingest,
    "tokenize": _tokenize,
    "images": _images,
    "vq": _vq,
    "write": _write,
}

POOLED = ("tokenize", "images")
"""Stages whose module the worker processes import."""


def run_stages(stages: list[str], options: Options) -> None:
    """Run the named stages; options: by the names of the command line.

    Raises UserError if more rows than `max_reject_rate` cannot be used, a file cannot be read or written, or
    another process is at work in the same folder.
    """
    work: Path = options["work"]
    taken = f"{work}: another build is at work in this folder; wait for its end, or give another --work"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(work / ".lock", taken):
            _run_stages(stages, options)
    except OSError as error:
        where = error.filename or work
        raise UserError(f"{where}: {error.strerror or error}; finished stages are kept") from error


def _run_stages(stages: list[str], options: Options) -> None:
    work: Path = options["work"]
    if "workers" in options:
        start_forkserver([f"pipelines.stages.{stage}" for stage in stages if stage in POOLED])
    if "model" in options:
        from janus.checkpoint.folder import open_model

        open_model(options["model"])  # a misspelt one is told before the first stage, not the fourth
    for stage in stages:
        done = RUN[stage](options)
        rejects = gather_rejects(work, stage)
        if "max_reject_rate" in options:
            ingested = require_stage("ingest", work)
            lenient = [s["name"] for s in ingested["inputs"]["sources"] if s["may_lack_images"]]
            read = ingested["notes"]["read"]
            check_reject_rate(rejects, read, lenient, options["max_reject_rate"], work)
        if stage == "write":
            from pipelines.summary import print_summary

            print_summary(done["notes"])
