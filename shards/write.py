"""Rows into shard files: the same rows give the same bytes, however they arrive in batches.

Rows are gathered into batches of a fixed number, hashed, and cut into files by size. A thread prepares the
next batch while one is written, so memory holds two or three. Write into a temporary folder, `write_manifest`
last, then `publish` it.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from janus.common.errors import UserError
from janus.common.files import replace_folder
from janus.prompts import IMAGE, TEXT
from shards.manifest import MANIFEST, SUFFIXES, PictureEntry, ShardEntry
from shards.pictures import CODECS, FOLDER, PICTURE_SCHEMA, picture_batches
from shards.rows import row_hashes
from shards.schema import CONTENT_SCHEMA, SCHEMA
from shards.tar import TarSink

SHARD_BYTES = 256 << 20
BATCH_ROWS = 1024
"""Rows of a record batch."""
BATCH_PICTURES = 64
"""Pictures of a record batch; raw they are 28 MB."""
BLOCK = 1 << 20
"""Smaller writes are gathered to this many bytes; larger ones pass without a copy."""


def write_shards(
    batches: Iterable[pa.RecordBatch],
    out: Path,
    *,
    split: str,
    task: str,
    format: str = "arrow",
    shard_bytes: int = SHARD_BYTES,
    first: int = 0,
) -> list[ShardEntry]:
    """Write the rows of one split and task, in the order given; returns an entry per file.

    batches: columns that cast to CONTENT_SCHEMA, any number of rows each. A new file begins where the
    next BATCH_ROWS rows would pass shard_bytes; first: the first one's number. Raises ValueError naming a row
    that contradicts itself.
    """
    checked = _ahead(_checked(_regular(batches, BATCH_ROWS), split, task))
    entries = []
    for file, counts in _files(checked, out, f"{split}/{task}", SCHEMA, format, shard_bytes, first):
        rows, tokens, supervised = counts
        entries.append(
            ShardEntry(split=split, task=task, rows=rows, tokens=tokens, supervised_tokens=supervised, **file)
        )
    return entries


def write_pictures(
    pictures: Iterable[tuple[str, bytes]],
    out: Path,
    kind: str,
    codec: str,
    format: str = "arrow",
    shard_bytes: int = SHARD_BYTES,
    first: int = 0,
) -> list[PictureEntry]:
    """Write pictures that are coded already, in the order given; returns an entry per file.

    pictures: (sha256 of the raw file, coded pixels), each once. kind: UNDERSTOOD or DRAWN. first: number of
    the first file.
    """
    batches, name = picture_batches(pictures, BATCH_PICTURES), f"{FOLDER}/{kind}"
    written = _files(batches, out, name, PICTURE_SCHEMA, format, shard_bytes, first, CODECS[codec].suffix)
    return [PictureEntry(pictures=counts[0], **file) for file, counts in written]


def _files(
    batches: Iterable[pa.RecordBatch],
    out: Path,
    name: str,
    schema: pa.Schema,
    format: str,
    limit: int,
    number: int,
    suffix: str = "",
) -> Iterator[tuple[dict[str, Any], tuple[int, ...]]]:
    """Write files of up to `limit` bytes; gives path, bytes and sha256 of each, and its counts."""
    file: _File | None = None
    for batch in batches:
        if file is not None and file.bytes + _content_bytes(batch) > limit:
            yield file.close()
            file = None
        if file is None:
            file = _File(out, f"{name}-{number:05d}{SUFFIXES[format]}", schema, suffix)
            number += 1
        file.write(batch)
    if file is not None:
        yield file.close()


def publish(tmp: Path, out: Path) -> None:
    """Put the finished folder `tmp` in the place of `out`, whose old shards are removed.

    Raises UserError if `out` holds something that is not a folder of shards.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file())):
        raise UserError(f"{out}: exists and is not a folder of shards; move it away or choose another")
    replace_folder(tmp, out)


class _HashedFile(io.RawIOBase):
    """A new file that has its sha256 once closed: a thread hashes each block while it is written."""

    def __init__(self, path: Path) -> None:
        self._file, self.digest, self._thread = path.open("wb"), hashlib.sha256(), ThreadPoolExecutor(1)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, block: Any) -> int:
        hashed = self._thread.submit(self.digest.update, block)
        try:
            return self._file.write(block)
        finally:
            hashed.result()  # from here on the caller may change the block

    def close(self) -> None:
        if not self.closed:
            self._thread.shutdown()
            self._file.close()
        super().close()


class _File:
    """One file while it is written, and what its entry will say."""

    def __init__(self, out: Path, path: str, schema: pa.Schema, suffix: str) -> None:
        self._out, self._path = out, path
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        self._hashed = _HashedFile(out / path)
        self._file = io.BufferedWriter(self._hashed, BLOCK)
        if path.endswith(".arrow"):  # uncompressed, so that its buffers can be memory-mapped
            options = pa.ipc.IpcWriteOptions(compression=None)
            self._sink: Any = pa.ipc.new_file(self._file, schema, options=options)
        else:
            self._sink = TarSink(self._file, out / path, suffix)
        self._counts, self.bytes = np.zeros(3, np.int64), 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._sink.write(batch)
        self._counts[0] += batch.num_rows
        if "num_tokens" in batch.schema.names:
            starts, ends, _ = batch["supervised"].flatten().flatten()
            supervised = (pc.sum(ends).as_py() or 0) - (pc.sum(starts).as_py() or 0)
            self._counts[1:] += pc.sum(batch["num_tokens"]).as_py(), supervised
        self.bytes += _content_bytes(batch)

    def close(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        self._sink.close()
        self._file.close()
        size, sha256 = (self._out / self._path).stat().st_size, self._hashed.digest.hexdigest()
        return {"path": self._path, "bytes": size, "sha256": sha256}, tuple(self._counts.tolist())


def _content_bytes(batch: pa.RecordBatch) -> int:
    return batch.nbytes - batch.column("xxh3").nbytes


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches, each made on a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def _checked(batches: Iterator[pa.RecordBatch], split: str, task: str) -> Iterator[pa.RecordBatch]:
    """Checked rows of CONTENT_SCHEMA with their hashes: rows of SCHEMA."""
    for batch in batches:
        _check_rows(batch, split, task)
        hashes = pa.array(row_hashes(batch), pa.uint64())
        yield pa.RecordBatch.from_arrays([*batch.columns, hashes], schema=SCHEMA)


def _regular(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `rows` (the last may be shorter), in fresh buffers.

    Slices keep offsets, bitmaps and bytes of their neighbours; the file would depend on how rows arrive.
    """
    pieces: list[pa.RecordBatch] = []
    for batch in batches:
        while batch.num_rows:
            pieces.append(batch.slice(0, rows - sum(p.num_rows for p in pieces)))
            batch = batch.slice(pieces[-1].num_rows)
            if sum(p.num_rows for p in pieces) == rows:
                yield _fresh(pieces)
                pieces = []
    if pieces:
        yield _fresh(pieces)


def _fresh(pieces: list[pa.RecordBatch]) -> pa.RecordBatch:
    table = pa.Table.from_batches([piece.cast(CONTENT_SCHEMA) for piece in pieces]).combine_chunks()
    batch = table.to_batches()[0]
    everything = pa.array(np.arange(len(batch)))  # a copy without anything of its neighbours
    columns = [column.take(everything) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=CONTENT_SCHEMA)


def _check_rows(batch: pa.RecordBatch, split: str, task: str) -> None:
    """Raise ValueError naming the first row that is in the wrong place or contradicts itself."""
    batch.validate(full=True)
    tokens, spans, rows = batch["num_tokens"], batch["supervised"], pa.array(range(len(batch)))
    (starts, ends, kinds), span_rows = spans.flatten().flatten(), pc.list_parent_indices(spans)
    empty, above = pc.less_equal(ends, starts), pc.greater(ends, tokens.take(span_rows))
    outside = pc.or_(pc.less(starts, 0), pc.or_(empty, above))
    unknown = pc.invert(pc.is_in(kinds, pa.array([TEXT, IMAGE], pa.int32())))
    lengths = pc.list_value_length(batch["input_ids"])
    pictures = batch["messages"].flatten().field("pictures")
    picture_rows = pc.list_parent_indices(batch["messages"]).take(pc.list_parent_indices(pictures))
    unnamed = pc.invert(pc.match_substring_regex(pictures.flatten(), "^[0-9a-f]{64}$")).fill_null(True)
    faults = {
        f"is not of task {task}": rows.filter(pc.not_equal(batch["task"], task)),
        f"is not of split {split}": rows.filter(pc.not_equal(batch["split"], split)),
        "num_tokens is not the length of input_ids": rows.filter(pc.not_equal(tokens, lengths)),
        "a supervised span is empty or outside input_ids": span_rows.filter(outside),
        "the kind of a supervised span is neither text nor image": span_rows.filter(unknown),
        "the name of a picture is no sha256": picture_rows.filter(unnamed),
    }
    for message, found in faults.items():
        if len(found):
            raise ValueError(f"{batch['sample_id'][found[0].as_py()]}: {message}")
