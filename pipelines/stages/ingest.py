"""Stage ingest: raw datasets → one table of rows per source, and each picture once.

The adapters know where fields lie. What holds for every source is done here: texts are stripped, rows with an
empty text or an unusable picture are rejected, rows and pictures are hashed.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from janus.common.console import track
from pipelines.adapters.artwork import read_artwork
from pipelines.adapters.medical_vqa import read_medical_vqa
from pipelines.adapters.parquet import read_pubmedqa, read_roco
from pipelines.adapters.raw import RawRow, RowError
from pipelines.sources import Source, present_sources
from pipelines.stage import run_stage
from pipelines.tables import IMAGE_SCHEMA, KINDS, REJECT_SCHEMA, ROW_SCHEMA, table_writer, write_rejects

ADAPTERS = {
    "pubmedqa": read_pubmedqa,
    "artwork": read_artwork,
    "medical_vqa": read_medical_vqa,
    "roco": read_roco,
}
"""Adapter in sources.yaml → what gives the number of rows, and the rows."""

_EMPTY_TURN = {"prompt": "empty_question", "answer": "empty_answer"}
EMPTY = {"text": _EMPTY_TURN, "vqa": _EMPTY_TURN, "t2i": {"prompt": "empty_caption"}}
"""Texts that a task needs, and the reason to reject a row without."""

CHUNK_ROWS = {"text": 512, "vqa": 64, "t2i": 64}
"""Rows of a record batch, the chunk of later stages: each worker has a few times 64 pictures in memory."""


def run(data: Path, work: Path, sources: Sequence[str]) -> dict[str, Any]:
    """Read every named source (or all) found in `data`; gives stage.json's content.

    Raises UserError if none is found, or a file does not have its data set's layout.
    """
    present = present_sources(data, sources)
    inputs = {
        "sources": [asdict(source) for source in present],
        "files": {source.name: _describe_files(data / source.folder) for source in present},
    }
    return run_stage("ingest", work, inputs, lambda folder: _ingest(present, data, folder))


def _describe_files(folder: Path) -> list[list[Any]]:
    """Path, size and modification time of each file, except hidden ones, which a download leaves."""
    folder = folder.absolute()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    shown = (p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return [[str(path), (stat := path.stat()).st_size, stat.st_mtime_ns] for path in shown]


def _ingest(sources: Sequence[Source], data: Path, folder: Path) -> dict[str, Any]:
    """Write the tables into `folder`; gives the notes of stage.json."""
    read: dict[str, int] = {}
    rejects: list[dict[str, Any]] = []
    seen: dict[str, set[str]] = {task: set() for task in CHUNK_ROWS}
    with ExitStack() as stack:
        images = {
            task: stack.enter_context(table_writer(folder / f"{kind}.images.arrow", IMAGE_SCHEMA))
            for task, kind in KINDS.items()
        }
        for source in sources:
            read[source.name], raws = ADAPTERS[source.adapter](data / source.folder)
            keys: set[str] = set()
            with (
                table_writer(folder / f"{source.name}.rows.arrow", ROW_SCHEMA) as writer,
                track(f"ingest {source.name}", read[source.name]) as advance,
            ):
                while block := list(islice(raws, CHUNK_ROWS[source.task])):
                    rows, pictures, rejected = _check_block(block, source, keys, seen[source.task])
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, ROW_SCHEMA))
                    if pictures:
                        images[source.task].write_batch(pa.RecordBatch.from_pylist(pictures, IMAGE_SCHEMA))
                    rejects += rejected
                    advance(len(block))
    write_rejects(folder, rejects)
    return {"read": read}


def _check_block(
    block: Iterable[RawRow], source: Source, keys: set[str], seen: set[str]
) -> tuple[list[dict], list[dict], list[dict]]:
    """Rows, new pictures and rejects, in the columns of their tables.

    keys: the source's keys so far; seen: sha256 of the task's pictures so far. Both are added to.
    """
    rows, pictures, rejects = [], [], []
    for raw in block:
        try:
            rows.append(row := _check_row(raw, source, keys))
            if raw.image is not None and row["image_sha256"] not in seen:
                seen.add(row["image_sha256"])
                pictures.append({"image_sha256": row["image_sha256"], "image": raw.image})
        except RowError as error:
            key = raw.source_key
            key = key.decode(errors="backslashreplace") if isinstance(key, bytes) else key
            values = (source.name, key, "ingest", *error.args)  # a missing detail becomes null
            rejects.append(dict(zip(REJECT_SCHEMA.names, values, strict=False)))
    return rows, pictures, rejects


def _check_row(raw: RawRow, source: Source, keys: set[str]) -> dict[str, Any]:
    """A usable row in the columns of ROW_SCHEMA. Raises RowError with the first reason against it.

    The sha256 of a row is that of its content: task, texts, picture.
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
    content = json.dumps([source.task, *texts.values(), image_sha256], sort_keys=True, ensure_ascii=False)
    return texts | {
        "task": source.task,
        "source": source.name,
        "split": raw.split if len(source.upstream_splits) > 1 else None,
        "source_key": key,
        "image_sha256": image_sha256,
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
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
