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
from shards.rows import ArrowRows, row_hashes
from shards.schema import CONTENT_SCHEMA, SCHEMA
from shards.tar import TarSink

SHARD_BYTES = 256 << 20
BATCH_ROWS = {"text": 1024, "vqa": 64, "t2i": 64}
"""Rows of a record batch; 64 images are 28 MB."""
BLOCK = 1 << 20
"""Smaller writes are gathered to this many bytes; larger ones pass without a copy."""


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
    checked = _checked(_regular(batches, BATCH_ROWS[task]), split, task, image_size)
    for batch in _ahead(checked):
        if shard is not None and shard.bytes + _content_bytes(batch) > shard_bytes:
            entries.append(shard.close())
            shard = None
        if shard is None:
            shard = _ShardFile(out, split, task, len(entries), format)
        shard.write(batch)
    if shard is not None:
        entries.append(shard.close())
    return entries


def publish(tmp: Path, out: Path) -> None:
    """Put the finished folder `tmp` in the place of `out`, whose old shards are removed.

    Raises UserError if `out` holds something that is not a folder of shards.
    """
    if not (tmp / MANIFEST).is_file():
        raise ValueError(f"{tmp} has no {MANIFEST}: it is not finished")
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
        self._out, self._split, self._task = out, split, task
        self._path = f"{split}/{task}-{number:05d}{SUFFIXES[format]}"
        (out / split).mkdir(parents=True, exist_ok=True)
        self._hashed = _HashedFile(out / self._path)
        self._file = io.BufferedWriter(self._hashed, BLOCK)
        if format == "arrow":  # uncompressed, so that its buffers can be memory-mapped
            options = pa.ipc.IpcWriteOptions(compression=None)
            self._sink: Any = pa.ipc.new_file(self._file, SCHEMA, options=options)
        else:
            self._sink = TarSink(self._file, out / self._path)
        self._rows = self._tokens = self._supervised = self.bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        rows = ArrowRows([batch])
        self._sink.write(batch)
        self._rows += batch.num_rows
        self._tokens += int(rows.num_tokens.sum(dtype=np.int64))
        self._supervised += int(rows.supervised_tokens.sum(dtype=np.int64))
        self.bytes += _content_bytes(batch)

    def close(self) -> ShardEntry:
        self._sink.close()
        self._file.close()
        return ShardEntry(
            path=self._path,
            split=self._split,
            task=self._task,
            rows=self._rows,
            tokens=self._tokens,
            supervised_tokens=self._supervised,
            bytes=(self._out / self._path).stat().st_size,
            sha256=self._hashed.digest.hexdigest(),
        )


def _content_bytes(batch: pa.RecordBatch) -> int:
    return batch.nbytes - batch.column("xxh3").nbytes


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches, each made on a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def _checked(
    batches: Iterator[pa.RecordBatch], split: str, task: str, image_size: int
) -> Iterator[pa.RecordBatch]:
    """Checked rows of CONTENT_SCHEMA with their hashes: rows of SCHEMA."""
    for batch in batches:
        _check_rows(batch, split, task, image_size)
        hashes = pa.array(row_hashes(batch), pa.uint64())
        yield pa.RecordBatch.from_arrays([*batch.columns, hashes], schema=SCHEMA)


def _regular(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `rows` (the last may be shorter), in fresh buffers.

    Slices keep offsets, bitmaps and bytes of their neighbours; the file would depend on how rows arrive.
    """
    pieces: list[pa.RecordBatch] = []
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            pieces.append(batch.slice(start, rows - sum(p.num_rows for p in pieces)))
            start += pieces[-1].num_rows
            if sum(p.num_rows for p in pieces) == rows:
                yield _fresh(pieces)
                pieces = []
    if pieces:
        yield _fresh(pieces)


def _fresh(pieces: list[pa.RecordBatch]) -> pa.RecordBatch:
    table = pa.Table.from_batches([piece.cast(CONTENT_SCHEMA) for piece in pieces]).combine_chunks()
    batch = table.to_batches()[0]
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
    spans = batch.column("supervised")
    starts, ends = spans.values.field("start"), spans.values.field("end")
    limits = batch.column("num_tokens").take(pc.list_parent_indices(spans))
    outside = pc.or_(pc.less(starts, 0), pc.or_(pc.less_equal(ends, starts), pc.greater(ends, limits)))
    faults = {
        f"is not of task {task}": pc.not_equal(batch.column("task"), task),
        f"is not of split {split}": pc.not_equal(batch.column("split"), split),
        "num_tokens is not the length of input_ids": pc.not_equal(
            batch.column("num_tokens"), pc.list_value_length(batch.column("input_ids"))
        ),
        f"image is not {image_size}×{image_size}×3 bytes": pc.not_equal(
            pc.binary_length(batch.column("image")), 3 * image_size**2
        ),
    }
    first = {message: pc.index(mask, True).as_py() for message, mask in faults.items()}
    span = pc.index(outside, True).as_py()
    first["a supervised span is empty or outside input_ids"] = (
        -1 if span < 0 else pc.list_parent_indices(spans)[span].as_py()
    )
    for message, row in first.items():
        if row >= 0:
            raise ValueError(f"{batch.column('sample_id')[row].as_py()}: {message}")
