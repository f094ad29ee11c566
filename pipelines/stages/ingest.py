"""Stage ingest: raw datasets → one table of rows per source, and each picture once.

The adapters say where fields lie; here is what holds for every source: texts are stripped, empty
ones and unusable pictures set aside, and rows and pictures hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from janus.common.console import track
from pipelines.adapters import load_adapter
from pipelines.rejects import write_rejects
from pipelines.sources import Source, present_sources
from pipelines.stage import describe_files, run_stage
from pipelines.tables import IMAGE_SCHEMA, KINDS, REJECT_SCHEMA, ROW_SCHEMA, table_writer

EMPTY = {
    "text": {"prompt": "empty_question", "answer": "empty_answer"},
    "vqa": {"prompt": "empty_question", "answer": "empty_answer"},
    "t2i": {"prompt": "empty_caption"},
}
"""Texts a task cannot do without, and the reason given where one is empty."""


def ingest(data: Path, work: Path, names: Sequence[str]) -> dict[str, Any]:
    """Read every chosen source that is present in `data`; gives stage.json's content.

    Raises UserError if none is present, or a file is not what its data set's layout says.
    """
    present, absent = present_sources(data, names)
    for source in absent:
        click.echo(f"ingest: {source.name} skipped, no folder {data / source.folder}")
    files = {s.name: load_adapter(s.adapter).files(data / s.folder) for s in present}
    inputs = {
        "sources": [json.loads(json.dumps(asdict(source))) for source in present],
        "files": {name: describe_files([path.absolute() for path in paths]) for name, paths in files.items()},
    }
    return run_stage("ingest", work, inputs, lambda folder: _ingest_all(present, data, folder))


def _ingest_all(sources: Sequence[Source], data: Path, folder: Path) -> dict[str, Any]:
    read: dict[str, int] = {}
    rejects: list[pa.Table] = []
    with ExitStack() as stack:
        images = {
            task: _ImageTable(
                stack.enter_context(table_writer(folder / f"{kind}.images.arrow", IMAGE_SCHEMA))
            )
            for task, kind in KINDS.items()
        }
        for source in sources:
            read[source.name] = _ingest_source(source, data / source.folder, folder, images, rejects)
    write_rejects(folder, rejects)
    return {"read": read}


def _ingest_source(
    source: Source, root: Path, folder: Path, images: dict[str, _ImageTable], rejects: list[pa.Table]
) -> int:
    """Write `<source>.rows.arrow`; gives the number of rows read."""
    adapter = load_adapter(source.adapter)
    keys: set[str] = set()
    read = 0
    with (
        table_writer(folder / f"{source.name}.rows.arrow", ROW_SCHEMA) as writer,
        track(f"ingest {source.name}", adapter.count_rows(root)) as advance,
    ):
        for raw in adapter.read(root):
            raw = _check(raw, source, keys)
            good = raw.filter(raw["reason"].is_null())
            rejects.append(_rejects(raw.filter(raw["reason"].is_valid()), source))
            image_sha256 = _hash_images(good["image"])
            writer.write_batch(_rows(good, source, image_sha256))
            if source.task in images:
                images[source.task].add(image_sha256, good["image"])
            read += raw.num_rows
            advance(raw.num_rows)
    return read


class _ImageTable:
    """A picture table under way: each picture once, whichever rows or sources name it."""

    def __init__(self, writer: pa.ipc.RecordBatchFileWriter) -> None:
        self._writer = writer
        self._seen: set[str] = set()

    def add(self, image_sha256: pa.Array, image: pa.Array) -> None:
        """Append what has not been seen."""
        fresh = []
        for row, sha256 in enumerate(image_sha256.to_pylist()):
            if sha256 not in self._seen:
                self._seen.add(sha256)
                fresh.append(row)
        if fresh:
            batch = pa.RecordBatch.from_arrays([image_sha256, image], schema=IMAGE_SCHEMA)
            self._writer.write_batch(batch.take(pa.array(fresh)))


def _check(raw: pa.RecordBatch, source: Source, keys: set[str]) -> pa.RecordBatch:
    """The batch with stripped texts, and a reason wherever a row cannot be used.

    keys: the source's keys so far, added to.
    """
    raw = _strip(raw)
    for name, reason in EMPTY[source.task].items():
        empty = pc.or_kleene(raw[name].is_null(), pc.equal(pc.fill_null(raw[name], ""), ""))
        raw = _set_reason(raw, empty, reason)
    if source.task in KINDS:
        raw = _set_reason(raw, raw["image"].is_null(), "image_missing")
    raw = _set_reason(raw, raw["source_key"].is_null(), "no_key")
    repeated = []
    for key, reason in zip(raw["source_key"].to_pylist(), raw["reason"].to_pylist(), strict=True):
        repeated.append(reason is None and key in keys)
        if reason is None:
            keys.add(key)
    return _set_reason(raw, pa.array(repeated), "duplicate_id")


def _strip(raw: pa.RecordBatch) -> pa.RecordBatch:
    """Strip the texts. What is not UTF-8 becomes null with a reason; NUL, a sign of damage, has one too."""
    for name in ("source_key", "prompt", "answer"):
        column = raw[name]
        valid = _is_utf8(column)
        if not valid.all():
            raw = _set_reason(raw, pa.array(~valid), "invalid_text", f"{name}: not UTF-8")
            column = pc.if_else(pa.array(valid), column, pa.scalar(None, pa.string()))
        nul = pc.fill_null(pc.match_substring(column, "\0"), False)
        raw = _set_reason(raw, nul, "invalid_text", f"{name}: holds NUL")
        if name != "source_key":
            column = pc.utf8_trim_whitespace(column)
        raw = raw.set_column(raw.schema.get_field_index(name), name, column)
    return raw


def _is_utf8(column: pa.StringArray) -> np.ndarray:
    """bool (rows,). Parquet does not promise that its strings are."""
    try:
        column.validate(full=True)
        return np.ones(len(column), bool)
    except pa.ArrowInvalid:
        return np.array([_decodes(value) for value in column.cast(pa.binary()).to_pylist()])


def _decodes(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _set_reason(
    raw: pa.RecordBatch, where: pa.Array, reason: str, detail: str | None = None
) -> pa.RecordBatch:
    """Give rows a reason, unless they have one: the first that is found stands."""
    where = pc.and_(where, raw["reason"].is_null())
    for name, value in (("detail", detail), ("reason", reason)):
        column = pc.if_else(where, pa.scalar(value, pa.string()), raw[name])
        raw = raw.set_column(raw.schema.get_field_index(name), name, column)
    return raw


def _rejects(raw: pa.RecordBatch, source: Source) -> pa.Table:
    constant = {"source": source.name, "stage": "ingest"}
    arrays = [
        pa.array([constant[name]] * raw.num_rows, pa.string()) if name in constant else raw[name]
        for name in REJECT_SCHEMA.names
    ]
    return pa.Table.from_arrays(arrays, schema=REJECT_SCHEMA)


def _hash_images(image: pa.LargeBinaryArray) -> pa.Array:
    """sha256 of each picture's file, null where there is none."""
    hashes = [None if not i.is_valid else hashlib.sha256(i.as_buffer()).hexdigest() for i in image]
    return pa.array(hashes, pa.string())


def _rows(good: pa.RecordBatch, source: Source, image_sha256: pa.Array) -> pa.RecordBatch:
    """Usable rows in the columns of ROW_SCHEMA."""
    rows = good.num_rows
    columns = {name: good[name] for name in ("source_key", "history", "prompt", "answer")}
    columns |= {
        "task": pa.array([source.task] * rows, pa.string()),
        "source": pa.array([source.name] * rows, pa.string()),
        "split": good["split"] if source.keeps_splits else pa.nulls(rows, pa.string()),
        "image_sha256": image_sha256,
        "sha256": _hash_rows(good, source.task, image_sha256),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in ROW_SCHEMA.names], schema=ROW_SCHEMA)


def _hash_rows(good: pa.RecordBatch, task: str, image_sha256: pa.Array) -> pa.Array:
    """sha256 of what a row says: task, texts and picture. Two rows that say the same have the same."""
    columns = [good[name].to_pylist() for name in ("history", "prompt", "answer")]
    said = zip(*columns, image_sha256.to_pylist(), strict=True)
    dumps = (json.dumps([task, *row], sort_keys=True, ensure_ascii=False) for row in said)
    return pa.array([hashlib.sha256(text.encode()).hexdigest() for text in dumps], pa.string())
