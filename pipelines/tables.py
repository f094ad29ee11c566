"""The tables that stages pass on, and how they are read and written.

`<work>/ingest/<source>.rows.arrow` holds rows without pictures; `<work>/ingest/<kind>.images.arrow` holds
each picture once. A row's *position* is its number across all row files, sources in the order of
`sources.yaml`; the tokenize stage keeps it, so rows and tokens need no join. Tables are read a batch at a
time, so memory stays flat as files grow. `<work>/images/<kind>-<part>.arrow` holds prepared pictures, one per
batch; `<kind>.index.arrow` says where each one is.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from shards.duplicates import HASH_BYTES

_TURN = pa.struct({"user": pa.string(), "assistant": pa.string()})
ROW_SCHEMA = pa.schema(
    dict.fromkeys(("task", "source", "split", "source_key"), pa.string())
    | {"history": pa.list_(_TURN)}
    | dict.fromkeys(("prompt", "answer", "image_sha256", "sha256"), pa.string())
)
"""Rows of ingest."""

IMAGE_SCHEMA = pa.schema([("image_sha256", pa.string()), ("image", pa.large_binary())])
"""Encoded pictures (ingest), and prepared ones, raw uint8 (images)."""

INDEX_SCHEMA = pa.schema(
    [
        ("image_sha256", pa.string()),
        ("picture_hash", pa.binary(HASH_BYTES)),  # perceptual; null: blank
        ("part", pa.int32()),
        ("batch", pa.int32()),
    ]
)
"""Where each prepared picture is."""
INDEX_ROWS = 16
"""Pictures in a batch of the index, which is a chunk of stage vq: a killed run loses at most these codes."""

_SPAN = pa.struct({"start": pa.int32(), "end": pa.int32()})
TOKEN_SCHEMA = pa.schema(
    {"input_ids": pa.list_(pa.int32()), "supervised": pa.list_(_SPAN), "num_tokens": pa.int32()}
)
"""Tokens of a row; all null: it is rejected."""

CODE_SCHEMA = pa.schema([("image_sha256", pa.string()), ("image_tokens", pa.list_(pa.uint16()))])

REJECT_SCHEMA = pa.schema(dict.fromkeys(("source", "source_key", "stage", "reason", "detail"), pa.string()))
REJECTS = "rejects.arrow"
"""Rejected rows: one file in the folder of each stage, and `<work>/rejects.arrow`, which gathers them."""

KINDS = {"vqa": "understanding", "t2i": "generation"}
"""How a task's pictures are prepared."""


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    """An Arrow IPC file, open for writing batches."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        yield writer


def write_table(path: Path, table: pa.Table, batch_rows: int | None = None) -> None:
    """A whole table as one file. batch_rows: the most in a record batch."""
    with table_writer(path, table.schema) as writer:
        writer.write_table(table, batch_rows)


def write_rejects(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The rejects of one stage; a column that a row lacks is null."""
    write_table(folder / REJECTS, pa.Table.from_pylist(rows, REJECT_SCHEMA))


def read_table(path: Path) -> pa.Table:
    """A whole small table, in memory."""
    with pa.OSFile(str(path), "rb") as file:
        return pa.ipc.open_file(file).read_all()


def read_columns(files: Iterable[Path], schema: pa.Schema, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of all rows in files of one schema.

    Mapped: in memory, each column would keep the other columns of its batch there.
    """
    batches = [batch.select(columns) for batch in _mapped_batches(files)]
    return frame(pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in columns])))


def frame(table: pa.Table) -> pl.DataFrame:
    """The table for Polars."""
    return pl.DataFrame(pl.from_arrow(table))


def row_files(work: Path, sources: Iterable[str]) -> list[Path]:
    """Files of ROW_SCHEMA that ingest wrote; a row's position counts through all of them."""
    return [work / "ingest" / f"{source}.rows.arrow" for source in sources]


class RandomRows:
    """Rows of several files of one schema, by their position over all of them."""

    def __init__(self, files: list[Path], schema: pa.Schema) -> None:
        """Map the files: pages are read when touched, and dropped when memory runs short."""
        self._schema = schema
        self._batches = _mapped_batches(files)
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    def take(self, positions: np.ndarray) -> pa.Table:
        """The rows at `positions` (int64), in that order."""
        of_batch = np.searchsorted(self._starts, positions, side="right") - 1
        order = np.argsort(of_batch, kind="stable")
        touched, firsts = np.unique(of_batch[order], return_index=True)
        taken = [
            self._batches[batch].take(pa.array(positions[group] - self._starts[batch]))
            for batch, group in zip(touched, np.split(order, firsts[1:]), strict=True)
        ]
        return pa.Table.from_batches(taken, self._schema).combine_chunks().take(pa.array(np.argsort(order)))


class ImageRows:
    """Prepared pictures by their position in the index of their kind, in mapped files."""

    def __init__(self, folder: Path, kind: str) -> None:
        """Read the index. A file is mapped when one of its pictures is first read."""
        self.index = read_table(folder / f"{kind}.index.arrow")
        self._part = self.index["part"].to_numpy()
        self._batch = self.index["batch"].to_numpy()
        self._reader = lru_cache(maxsize=32)(lambda part: open_table(folder / part_name(kind, part)))

    def __len__(self) -> int:
        return self.index.num_rows

    def take(self, positions: Iterable[int]) -> pa.LargeBinaryArray:
        """Raw pixels of at least one picture, in that order, gathered in one copy."""
        pictures = [self._reader(int(self._part[i])).get_batch(int(self._batch[i])) for i in positions]
        return pa.concat_arrays([picture.column("image") for picture in pictures])

    def pixels(self, position: int) -> np.ndarray:
        """One picture, a square, uint8 (H, W, 3)."""
        flat = np.frombuffer(self.take([position])[0].as_buffer(), np.uint8)
        side = math.isqrt(len(flat) // 3)
        return flat.reshape(side, side, 3)


def part_name(name: str, number: int) -> str:
    """File name of a part of a table: what a stage makes of one chunk."""
    return f"{name}-{number:05d}.arrow"


def open_table(path: Path) -> pa.ipc.RecordBatchFileReader:
    """A file, mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path)))


def _mapped_batches(files: Iterable[Path]) -> list[pa.RecordBatch]:
    readers = map(open_table, files)
    return [reader.get_batch(i) for reader in readers for i in range(reader.num_record_batches)]
