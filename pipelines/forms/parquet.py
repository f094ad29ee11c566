"""Records of parquet files, with pictures as the hub writes them: structs of `bytes` and `path`."""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from janus.common.errors import UserError
from pipelines.forms.row import Record, Records

READ_ROWS = 64
"""Rows in memory at a time, with their pictures."""


def count_rows(path: Path) -> int:
    """Rows of a parquet file. Raises UserError if it is none."""
    with _whole(path):
        return pq.read_metadata(path).num_rows


def column_names(path: Path) -> list[str]:
    """Its columns."""
    with _whole(path):
        return pq.read_schema(path).names


def read_parquet(path: Path, columns: Container[str]) -> Records:
    """Rows of a parquet file; other columns than these are not read."""
    with _whole(path):
        file = pq.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name in columns]
        number = 0
        for batch in file.iter_batches(READ_ROWS, columns=names):
            yield from map(Record, range(number + 1, number + 1 + batch.num_rows), _rows(batch))
            number += batch.num_rows


def _rows(batch: pa.RecordBatch) -> Iterator[Any]:
    """Columns of each row."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # before the first row: one by one, so that the others are kept
        for i in range(batch.num_rows):
            yield {name: _value(batch[name].slice(i, 1)) for name in batch.schema.names}


def _value(cell: pa.Array) -> Any:
    """A value; of a string that is not UTF-8, bytes that do not fit become lone surrogates."""
    try:
        return cell[0].as_py()
    except UnicodeDecodeError:
        if pa.types.is_string(cell.type) or pa.types.is_large_string(cell.type):
            return cell.cast(pa.large_binary())[0].as_py().decode(errors="surrogateescape")
        return "\udcff"  # somewhere in a list or struct


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Name the file if it cannot be read as parquet."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: damaged, or not a parquet file ({what}); fetch it again") from error
