"""Rows into shard files: the same rows give the same bytes, however they arrive in batches.

Rows are gathered into batches of a fixed number, hashed, and cut into files by size. The next batch is
made ready on a thread while one is written, so memory holds two or three. Write into a temporary folder,
`write_manifest` last, then `publish` the whole.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol

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
"""Rows of a record batch: 64 images are 28 MB, the most that is gathered at a time."""
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
    """A new file that knows its sha256 once closed: each block is hashed on a thread while it is written."""

    def __init__(self, path: Path) -> None:
        self._file, self._digest, self._thread = path.open("wb"), hashlib.sha256(), ThreadPoolExecutor(1)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, block: Any) -> int:
        hashed = self._thread.submit(self._digest.update, block)
        try:
            return self._file.write(block)
        finally:
            hashed.result()  # the block is the caller's to change from here on

    def close(self) -> None:
        if not self.closed:
            self._thread.shutdown()
            self._file.close()
        super().close()


class _Sink(Protocol):
    """An open shard file."""

    def write(self, batch: pa.RecordBatch) -> None: ...

    def close(self) -> None: ...


class _ArrowSink:
    """An uncompressed Arrow IPC file, whose buffers can be used where they lie."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._writer = pa.ipc.new_file(file, SCHEMA, options=pa.ipc.IpcWriteOptions(compression=None))

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


_SINKS: dict[str, Callable[[BinaryIO, Path], _Sink]] = {"arrow": _ArrowSink, "webdataset": TarSink}


class _ShardFile:
    """One shard while it is written, and what its entry will say."""

    def __init__(self, out: Path, split: str, task: str, number: int, format: str) -> None:
        self._out, self._split, self._task = out, split, task
        self._path = f"{split}/{task}-{number:05d}{SUFFIXES[format]}"
        (out / split).mkdir(parents=True, exist_ok=True)
        self._hashed = _HashedFile(out / self._path)
        self._file = io.BufferedWriter(self._hashed, BLOCK)
        self._sink = _SINKS[format](self._file, out / self._path)
        self._rows = self._tokens = self._supervised = self.bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows of SCHEMA."""
        rows = ArrowRows([batch])
        self._sink.write(batch)
        self._rows += batch.num_rows
        self._tokens += int(rows.num_tokens.sum(dtype=np.int64))
        self._supervised += int(rows.supervised_tokens.sum(dtype=np.int64))
        self.bytes += _content_bytes(batch)

    def close(self) -> ShardEntry:
        """Finish the file."""
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
            sha256=self._hashed.sha256,
        )


def _content_bytes(batch: pa.RecordBatch) -> int:
    return batch.nbytes - batch.column("xxh3").nbytes


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches, the next one made on a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def _checked(
    batches: Iterator[pa.RecordBatch], split: str, task: str, image_size: int
) -> Iterator[pa.RecordBatch]:
    """The rows of CONTENT_SCHEMA, found in order, with their hashes: rows of SCHEMA."""
    for batch in batches:
        _check_rows(batch, split, task, image_size)
        hashes = pa.array(row_hashes(batch), pa.uint64())
        yield pa.RecordBatch.from_arrays([*batch.columns, hashes], schema=SCHEMA)


def _regular(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly `rows` (the last may be shorter), in fresh buffers.

    Fresh, because slices drag along offsets, bitmaps and bytes of their neighbours, which would make
    the file depend on how the rows arrived.
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
    """The column without anything of its neighbours; pictures stay where they lie, the most bytes by far."""
    if pa.types.is_large_binary(column.type) and not column.null_count:
        buffers = [None, *column.buffers()[1:]]  # a slice of these is written as if it stood alone
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
