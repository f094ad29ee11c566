"""Stage ingest: raw datasets → one table of rows per source, and each picture once.

The adapters know where fields lie. What holds for every source is done here: texts are stripped, empty ones
and unusable pictures set aside, rows and pictures hashed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from janus.common.console import track
from pipelines.adapters import load_adapter
from pipelines.adapters.common import RawRow, RowError
from pipelines.rejects import write_rejects
from pipelines.sources import Source, present_sources
from pipelines.stage import run_stage
from pipelines.tables import IMAGE_SCHEMA, KINDS, REJECT_SCHEMA, ROW_SCHEMA, table_writer

EMPTY = {
    "text": {"prompt": "empty_question", "answer": "empty_answer"},
    "vqa": {"prompt": "empty_question", "answer": "empty_answer"},
    "t2i": {"prompt": "empty_caption"},
}
"""Texts that a task needs, and the reason where one is empty."""

CHUNK_ROWS = {"text": 512, "vqa": 64, "t2i": 64}
"""Rows of a record batch, which is a chunk of the stages after: 64 pictures fit into memory a few times."""


def run(data: Path, work: Path, sources: Sequence[str]) -> dict[str, Any]:
    """Read every named source (or all) that is present in `data`; gives stage.json's content.

    Raises UserError if none is present, or a file does not have its data set's layout.
    """
    present = present_sources(data, sources)
    inputs = {
        "sources": [json.loads(json.dumps(asdict(source))) for source in present],
        "files": {source.name: _describe_files(data / source.folder) for source in present},
    }
    return run_stage("ingest", work, inputs, lambda folder: _ingest(present, data, folder))


def _describe_files(folder: Path) -> list[list[Any]]:
    """Path, size and modification time of each file, but of a download's hidden notes."""
    folder = folder.absolute()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    stats = [(p, p.stat()) for p in files if not re.search(r"(^|/)\.", p.relative_to(folder).as_posix())]
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _ingest(sources: Sequence[Source], data: Path, folder: Path) -> dict[str, Any]:
    read: dict[str, int] = {}
    rejects: list[pa.Table] = []
    with ExitStack() as stack:
        images = {}
        for task, kind in KINDS.items():
            writer = stack.enter_context(table_writer(folder / f"{kind}.images.arrow", IMAGE_SCHEMA))
            images[task] = _ImageTable(writer)
        for source in sources:
            read[source.name] = _ingest_source(source, data / source.folder, folder, images, rejects)
    write_rejects(folder, rejects)
    return {"read": read}


def _ingest_source(
    source: Source, root: Path, folder: Path, images: dict[str, _ImageTable], rejects: list[pa.Table]
) -> int:
    """Write `<source>.rows.arrow`, add to `images` and `rejects`; gives the number of rows read."""
    adapter = load_adapter(source.adapter)
    keys: set[str] = set()
    read = 0
    with (
        table_writer(folder / f"{source.name}.rows.arrow", ROW_SCHEMA) as writer,
        track(f"ingest {source.name}", adapter.count_rows(root)) as advance,
    ):
        raws = adapter.read(root)
        while block := list(islice(raws, CHUNK_ROWS[source.task])):
            rows, rejected, pictures = [], [], {}
            for raw in block:
                try:
                    rows.append(row := check_row(raw, source, keys))
                except RowError as error:
                    rejected.append(_reject(raw, source, *error.args))
                    continue
                if raw.image is not None:
                    pictures[row["image_sha256"]] = raw.image
            writer.write_batch(pa.RecordBatch.from_pylist(rows, ROW_SCHEMA))
            rejects.append(pa.Table.from_pylist(rejected, REJECT_SCHEMA))
            if source.task in images:
                images[source.task].add(pictures)
            read += len(block)
            advance(len(block))
    return read


class _ImageTable:
    """A picture table being written: each picture once, whichever rows or sources name it."""

    def __init__(self, writer: pa.ipc.RecordBatchFileWriter) -> None:
        self._writer = writer
        self._seen: set[str] = set()

    def add(self, pictures: dict[str, bytes]) -> None:
        """Append those that are new. pictures: sha256 → encoded file."""
        fresh = [{"image_sha256": key, "image": pictures[key]} for key in pictures if key not in self._seen]
        self._seen.update(pictures)
        if fresh:
            self._writer.write_batch(pa.RecordBatch.from_pylist(fresh, IMAGE_SCHEMA))


def check_row(raw: RawRow, source: Source, keys: set[str]) -> dict[str, Any]:
    """A usable row in the columns of ROW_SCHEMA. Raises RowError with the first reason against it.

    keys: the source's keys so far, added to. The row's sha256 is that of what it says: task, texts, picture.
    """
    if raw.error:
        raise raw.error
    key, prompt, answer = (_text(getattr(raw, name), name) for name in ("source_key", "prompt", "answer"))
    texts = {"history": raw.history, "prompt": prompt.strip(), "answer": answer.strip()}
    for name, reason in EMPTY[source.task].items():
        if not texts[name]:
            raise RowError(reason)
    if source.task in KINDS and raw.image is None:
        raise RowError("image_missing")
    if raw.source_key is None:
        raise RowError("no_key")
    if key in keys:
        raise RowError("duplicate_id")
    keys.add(key)
    image_sha256 = None if raw.image is None else hashlib.sha256(raw.image).hexdigest()
    said = json.dumps([source.task, *texts.values(), image_sha256], sort_keys=True, ensure_ascii=False)
    return texts | {
        "task": source.task,
        "source": source.name,
        "split": raw.split if source.keeps_splits else None,
        "source_key": key,
        "image_sha256": image_sha256,
        "sha256": hashlib.sha256(said.encode()).hexdigest(),
    }


def _text(value: str | bytes | None, name: str) -> str:
    """The text, empty for None. Raises RowError if it is not UTF-8 or holds NUL, a sign of damage."""
    try:
        text = value.decode() if isinstance(value, bytes) else value or ""
    except UnicodeDecodeError:
        raise RowError("invalid_text", f"{name}: not UTF-8") from None
    if "\0" in text:
        raise RowError("invalid_text", f"{name}: holds NUL")
    return text


def _reject(raw: RawRow, source: Source, reason: str, detail: str | None) -> dict[str, str | None]:
    """The row of `rejects.arrow`, whatever its key holds."""
    key = raw.source_key
    return {
        "source": source.name,
        "source_key": key.decode(errors="backslashreplace") if isinstance(key, bytes) else key,
        "stage": "ingest",
        "reason": reason,
        "detail": detail,
    }
