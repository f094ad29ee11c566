"""The tables that stages pass on, and how they are read and written.

`<work>/ingest/<source>.rows.arrow` holds rows with the hashes of their pictures, and
`<work>/ingest/<kind>.images.arrow` each encoded picture once. A row's *position* is its number across all row
files, sources in the order of `sources.yaml`; the tokenize stage keeps it, so rows and tokens need no join.
Generations follow each other: positions count on through `<work>/gen-001`, …
Tables are read a batch at a time, so memory stays flat. `<work>/images/<kind>-<part>.arrow` holds
prepared pictures, one per batch; `<kind>.index.arrow` says where each one is.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa

from shards.compare.duplicates import HASH_BYTES, messages_of
from shards.pictures import CODECS, DRAWN, UNDERSTOOD
from shards.schema import CONTENT_SCHEMA

ROW_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("task", "source", "split", "source_key")),
        ("messages", CONTENT_SCHEMA.field("messages").type),
        *((name, pa.string()) for name in ("prompt", "answer", "sha256")),
    ]
)
"""Rows of ingest. prompt, answer: the texts of the last user turn and of the last assistant turn."""

IMAGE_SCHEMA = pa.schema([("image_sha256", pa.string()), ("image", pa.large_binary())])
"""Encoded pictures (ingest), and prepared ones, coded as `--pixels` says (images)."""

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

_SPAN = pa.struct(dict.fromkeys(("start", "end", "kind"), pa.int32()))
TOKEN_SCHEMA = pa.schema(
    {"input_ids": pa.list_(pa.int32()), "supervised": pa.list_(_SPAN), "num_tokens": pa.int32()}
)
"""Tokens of a row; all null: it is rejected."""

CODE_SCHEMA = pa.schema([("image_sha256", pa.string()), ("image_tokens", pa.list_(pa.uint16()))])

REJECT_SCHEMA = pa.schema(dict.fromkeys(("source", "source_key", "stage", "reason", "detail"), pa.string()))
REJECTS = "rejects.arrow"
"""Rejected rows: one file in the folder of each stage, and `<work>/rejects.arrow`, which gathers them."""

KIND_OF = {"user": UNDERSTOOD, "assistant": DRAWN}
"""How the pictures of a role are prepared."""


def pictures_of(rows: pl.DataFrame, *names: str) -> pl.DataFrame:
    """(names…, kind, image_sha256) of each picture of the rows, in order. names: columns to keep."""
    pictures = messages_of(rows, *names).explode("pictures")
    kind = pl.col("role").replace_strict(KIND_OF, default=None)
    return pictures.drop_nulls("pictures").select(*names, kind=kind, image_sha256="pictures")


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    """An Arrow IPC file, open for writing batches."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        yield writer


class TableBuffer:
    """A table that is written a row at a time, in record batches of `rows`, or fewer where they are large."""

    BYTES = 1 << 26
    """Size after which a batch is full."""

    def __init__(self, path: Path, schema: pa.Schema, rows: int) -> None:
        """Nothing is opened before the context is entered."""
        self._opened = table_writer(path, schema)
        self._schema, self._rows = schema, rows
        self._waiting: list[Sequence[Any]] = []
        self._size = 0

    def __enter__(self) -> Self:
        self._writer = self._opened.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        with ExitStack() as stack:  # closes where the flush fails, too
            if failure[0] is not None:
                stack.callback(self._opened.__exit__, *failure)
            else:
                stack.push(self._opened)
                self._flush()

    def add(self, row: Sequence[Any], size: int = 0) -> None:
        """Add a row, in the order of the columns. size: its bytes, where rows are large."""
        self._waiting.append(row)
        self._size += size
        if len(self._waiting) >= self._rows or self._size >= self.BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            columns = map(list, zip(*self._waiting, strict=True))
            arrays = [
                pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)
            ]
            self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._waiting, self._size = [], 0


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

    def __init__(self, folder: Path, kind: str, codec: str, later: Sequence[Path] = ()) -> None:
        """Read the index. A file is mapped when one of its pictures is first read.

        later: the same folder of later generations.
        """
        folders, self._codec = [folder, *later], codec
        indices = [read_table(folder / f"{kind}.index.arrow") for folder in folders]
        self.index = pa.concat_tables(indices)
        self._folder = np.repeat(np.arange(len(folders)), [len(index) for index in indices])
        self._part = self.index["part"].to_numpy()
        self._batch = self.index["batch"].to_numpy()
        self._reader = lru_cache(maxsize=32)(lambda f, part: open_table(folders[f] / part_name(kind, part)))

    def __len__(self) -> int:
        return self.index.num_rows

    def take(self, positions: Iterable[int]) -> Iterator[tuple[str, bytes]]:
        """(sha256 of the file, coded pixels) of pictures, in that order."""
        for position in positions:
            file = self._reader(int(self._folder[position]), int(self._part[position]))
            batch = file.get_batch(int(self._batch[position]))
            yield batch["image_sha256"][0].as_py(), batch["image"][0].as_buffer().to_pybytes()

    def pixels(self, position: int, size: int) -> np.ndarray:
        """One picture, uint8 (size, size, 3)."""
        ((_, data),) = self.take([position])
        return CODECS[self._codec].decode(data, size)


def part_name(name: str, number: int) -> str:
    """File name of a part of a table: what a stage makes of one chunk."""
    return f"{name}-{number:05d}.arrow"


def open_table(path: Path) -> pa.ipc.RecordBatchFileReader:
    """A file, mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path)))


def _mapped_batches(files: Iterable[Path]) -> list[pa.RecordBatch]:
    readers = map(open_table, files)
    return [reader.get_batch(i) for reader in readers for i in range(reader.num_record_batches)]
