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
from shards.manifest import MANIFEST, SUFFIXES, ShardEntry
from shards.rows import row_hashes
from shards.schema import CONTENT_SCHEMA, SCHEMA
from shards.tar import TarSink

SHARD_BYTES = 256 << 20
BATCH_ROWS = {"text": 1024, "vqa": 64, "t2i": 64}  # of a record batch; 64 images are 28 MB
BLOCK = 1 << 20  # smaller writes are gathered to this many bytes; larger ones pass without a copy


def write_shards(
    batches: Iterable[pa.RecordBatch],
    out: Path,
    *,
    split: str,
    task: str,
    image_size: int,
    format: str = "arrow",
    shard_bytes: int = SHARD_BYTES,
) -> list[ShardEntry]:
    """Write the rows of one split and task, in the order given; returns an entry per file.

    batches: columns that cast to CONTENT_SCHEMA, any number of rows each. A new file begins where the
    next BATCH_ROWS rows would pass shard_bytes. Raises ValueError naming a row that contradicts itself.
    """
    entries: list[ShardEntry] = []
    shard: _ShardFile | None = None
    regular = _regular(batches, BATCH_ROWS[task])
    for batch in _ahead(_hashed(batch, split, task, image_size) for batch in regular):
        if shard is not None and shard.bytes + _content_bytes(batch) > shard_bytes:
            entries.append(shard.close())
            shard = None
        if shard is None:
            shard = _ShardFile(out, split, task, len(entries), format)
        shard.write(batch)
    return [*entries, shard.close()] if shard is not None else entries


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


class _ShardFile:
    """One shard while it is written, and what its entry will say."""

    def __init__(self, out: Path, split: str, task: str, number: int, format: str) -> None:
        self._name, self._place = f"{split}/{task}-{number:05d}{SUFFIXES[format]}", (split, task)
        self._path = out / self._name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._hashed = _HashedFile(self._path)
        file = self._file = io.BufferedWriter(self._hashed, BLOCK)
        # Arrow's default is uncompressed, so that buffers can be memory-mapped.
        self._sink = pa.ipc.new_file(file, SCHEMA) if format == "arrow" else TarSink(file, self._path)
        self._rows = self._tokens = self._supervised = self.bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._sink.write(batch)
        self._rows += batch.num_rows
        self._tokens += len(batch["input_ids"].values)
        spans = batch["supervised"].values
        self._supervised += int(np.subtract(spans.field("end"), spans.field("start")).sum(dtype=np.int64))
        self.bytes += _content_bytes(batch)

    def close(self) -> ShardEntry:
        self._sink.close()
        self._file.close()
        counts = self._rows, self._tokens, self._supervised, self._path.stat().st_size
        return ShardEntry(self._name, *self._place, *counts, sha256=self._hashed.digest.hexdigest())


def _content_bytes(batch: pa.RecordBatch) -> int:
    return batch.nbytes - batch.column("xxh3").nbytes


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches, each made on a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def _hashed(batch: pa.RecordBatch, split: str, task: str, image_size: int) -> pa.RecordBatch:
    """Checked rows of CONTENT_SCHEMA with their hashes: rows of SCHEMA."""
    _check_rows(batch, split, task, image_size)
    return pa.RecordBatch.from_arrays([*batch.columns, pa.array(row_hashes(batch))], schema=SCHEMA)


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
    (batch,) = table.to_batches()
    return pa.RecordBatch.from_arrays([_own(column) for column in batch.columns], schema=CONTENT_SCHEMA)


def _own(column: pa.Array) -> pa.Array:
    """The column copied without anything of its neighbours; pictures, most of the bytes, are not copied."""
    if pa.types.is_large_binary(column.type) and not column.null_count:
        buffers = [None, *column.buffers()[1:]]  # of these only the slice is written
        return pa.Array.from_buffers(column.type, len(column), buffers, null_count=0, offset=column.offset)
    return column.take(pa.array(np.arange(len(column))))


def _check_rows(batch: pa.RecordBatch, split: str, task: str, image_size: int) -> None:
    """Raise ValueError naming the first row that is in the wrong place or contradicts itself."""
    batch.validate(full=True)
    tokens, spans, rows = batch["num_tokens"], batch["supervised"], pa.array(range(len(batch)))
    (starts, ends), span_rows = spans.flatten().flatten(), pc.list_parent_indices(spans)
    empty, above = pc.less_equal(ends, starts), pc.greater(ends, tokens.take(span_rows))
    outside = pc.or_(pc.less(starts, 0), pc.or_(empty, above))
    lengths = pc.list_value_length(batch["input_ids"])
    other_size = pc.not_equal(pc.binary_length(batch["image"]), 3 * image_size**2)
    faults = {
        f"is not of task {task}": rows.filter(pc.not_equal(batch["task"], task)),
        f"is not of split {split}": rows.filter(pc.not_equal(batch["split"], split)),
        "num_tokens is not the length of input_ids": rows.filter(pc.not_equal(tokens, lengths)),
        f"image is not {image_size}×{image_size}×3 bytes": rows.filter(other_size),
        "a supervised span is empty or outside input_ids": span_rows.filter(outside),
    }
    for message, found in faults.items():
        if len(found):
            raise ValueError(f"{batch['sample_id'][found[0].as_py()]}: {message}")
