"""Stage ingest: raw datasets → one table of rows per source, and each picture once.

Forms know where fields lie (`pipelines/forms`), rules what a usable row is (`rules`), `growth` what is new
since the last build; this writes the tables.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
import polars as pl
import pyarrow as pa

from janus.common.console import track
from pipelines.datafolder import present_sources
from pipelines.forms.files import paths_of
from pipelines.forms.pictures import RowError, printable
from pipelines.forms.read import read_source
from pipelines.sources import Source
from pipelines.stage import (
    GENERATION,
    STAGE_FILE,
    generation,
    generations,
    rejects_of,
    require_stage,
    run_stage,
)
from pipelines.stages.growth import Rewritten, Starts, growth, heads_of
from pipelines.stages.rules import Checker
from pipelines.tables import (
    IMAGE_SCHEMA,
    KIND_OF,
    REJECT_SCHEMA,
    REJECTS,
    ROW_SCHEMA,
    TableBuffer,
    read_columns,
)

CHUNK_ROWS = 512
"""Rows of a record batch, the chunk of later stages."""

CHUNK_PICTURES = 64
"""Pictures of a record batch: each worker has a few times as many in memory."""


def run(data: Path, work: Path, sources: Sequence[str], sources_file: Path | None = None) -> dict[str, Any]:
    """Read every named source (or all) that there is; gives stage.json's content.

    Raises UserError if there is none, or a file is not of its source's form.
    """
    root, present = present_sources(data, sources, sources_file)
    inputs = {
        "sources": [json.loads(json.dumps(asdict(source))) for source in present],
        "paths": {s.name: [str(path.absolute()) for path in paths_of(root / s.folder, s)] for s in present},
        "files": dict(sorted(pair for s in present for pair in _describe_files(root, s, work))),
    }
    before = generations(work)
    last = require_stage("ingest", before[-1])["inputs"] if before else None
    starts: Starts | None = None
    heads: dict[str, str | None] = {}
    if last and last | {"before": None} == inputs | {"before": None}:
        inputs, before = last, before[:-1]  # skipped
    elif starts := _growth(before, inputs):
        done = require_stage("ingest", before[-1])
        inputs["before"] = done["fingerprint"]
        read = {path for own in starts.values() for path in own}
        heads = {path: head for path, head in done["notes"]["heads"].items() if path not in read}

    def body(folder: Path) -> dict[str, Any]:
        counts = _ingest(root, present, folder, starts, before)
        return {"read": counts, "heads": heads_of(inputs, heads)}

    target = generation(work, len(before))
    for folder in {*work.glob(f"{GENERATION}*")} - {*before, target}:
        shutil.rmtree(folder)
    return run_stage("ingest", target, inputs, body)


def _growth(before: list[Path], inputs: Mapping[str, Any]) -> Starts | None:
    """What to read beyond the generations before, said in the log; None: everything.

    before: those that cannot be continued are taken off its end.
    """
    why = ""
    while before:
        rejects = pl.concat(rejects_of(folder, ["ingest"]) for folder in before)
        missing = rejects.filter(reason="image_missing")["detail"].drop_nulls()
        try:
            starts = growth(
                require_stage("ingest", before[-1]), inputs, {Path(name).name for name in missing}
            )
        except Rewritten as change:
            why = why or str(change)
            before.pop()
            continue
        for source, own in starts.items():
            for path, start in own.items():
                click.echo(f"ingest: {source} goes on with {path}{f' from byte {start:,}' if start else ''}")
        return starts
    if why:
        click.echo(f"ingest: {why}, so everything is read again")
    return None


def _describe_files(root: Path, source: Source, work: Path) -> Iterator[tuple[str, list[int]]]:
    """Path, size and modification time of each file that the source's rows may come from."""
    base = root / source.folder
    if source.folder:
        paths = {*_walk(base, work)}
    else:
        paths = {*paths_of(base, source)}
        folders = {path if path.is_dir() else path.parent for path in paths}
        images = source.images if isinstance(source.images, str) else ""
        paths |= {file for folder in folders for file in _walk(folder / images, work)}
        paths |= {root / str(source.form)} if source.is_plugin else set()
    stats = ((path.absolute(), path.stat()) for path in paths if path.is_file())
    return ((str(path), [stat.st_size, stat.st_mtime_ns]) for path, stat in stats)


def _walk(folder: Path, work: Path) -> Iterator[Path]:
    """Files below, but for hidden ones, which a download leaves, sources.yaml, and what builds wrote."""
    for place, folders, files in os.walk(folder):
        if Path(place).absolute() == work.absolute() or not {STAGE_FILE, "manifest.json"}.isdisjoint(files):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(place, name) for name in files if not name.startswith(".") and not name.endswith(".yaml")
        )


def _ingest(
    root: Path, sources: Sequence[Source], folder: Path, starts: Starts | None, before: Sequence[Path]
) -> dict[str, int]:
    """Write the tables into `folder`; gives the rows read of each source.

    starts: what to read, None for all. before: generations whose pictures and keys are taken.
    """
    read = dict.fromkeys((source.name for source in sources), 0)
    stored = {
        kind: _column(before, f"{kind}.images", IMAGE_SCHEMA, "image_sha256") for kind in KIND_OF.values()
    }
    checker = Checker(stored)
    with ExitStack() as stack:
        rejects = stack.enter_context(TableBuffer(folder / REJECTS, REJECT_SCHEMA, CHUNK_ROWS))
        images = {
            kind: stack.enter_context(
                TableBuffer(folder / f"{kind}.images.arrow", IMAGE_SCHEMA, CHUNK_PICTURES)
            )
            for kind in KIND_OF.values()
        }
        for source in sources:
            keys = _column(before, f"{source.name}.rows", ROW_SCHEMA, "source_key")
            reading = read_source(root, source, None if starts is None else starts[source.name], keys)
            checker = replace(checker, keys=keys)
            with (
                TableBuffer(folder / f"{source.name}.rows.arrow", ROW_SCHEMA, CHUNK_ROWS) as rows,
                track(f"ingest {source.name}", reading.count) as advance,
            ):
                while block := list(islice(reading.rows, CHUNK_PICTURES)):
                    for raw in block:
                        try:
                            checked = checker.check(raw, source)
                        except RowError as error:
                            key = None if raw.key is None else printable(raw.key)
                            rejects.add((source.name, key, "ingest", *error.args))
                            continue
                        rows.add([checked.row[name] for name in ROW_SCHEMA.names])
                        for kind, sha256, picture in checked.pictures:
                            images[kind].add((sha256, picture), len(picture))
                    read[source.name] += len(block)
                    advance(len(block))
    return read


def _column(before: Sequence[Path], table: str, schema: pa.Schema, name: str) -> set[str]:
    """The values of a column in the generations before."""
    files = [path for folder in before if (path := folder / "ingest" / f"{table}.arrow").is_file()]
    return set(read_columns(files, schema, [name])[name])
