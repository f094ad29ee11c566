"""The datasets that come as parquet files, PubMedQA and ROCO. Columns are checked before any row is read."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from janus.common.errors import UserError
from janus.prompts import SPLITS
from pipelines.adapters.raw import RawRow, find_files

READ_ROWS = 64
"""Rows of a parquet file in memory at a time, with their pictures."""

PUBMEDQA = {"pubid": "integer", "question": "string", "long_answer": "string"}
ROCO = {"image_id": "string", "caption": "string", "image.bytes": "binary"}

_KINDS = {
    "string": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t),
    "integer": pa.types.is_integer,
    "binary": lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t),
}


def read_pubmedqa(folder: Path) -> tuple[int, Iterator[RawRow]]:
    """Question → long_answer, as text, from every subset found; the context is not used. Key: `pubid`."""
    paths = find_files(folder, "pqa_*/*.parquet")
    rows = (row for path in paths for row in _rows(path, PUBMEDQA))
    raws = (RawRow(None if key is None else str(key), question, answer) for key, question, answer in rows)
    return _count(paths, PUBMEDQA), raws


def read_roco(folder: Path) -> tuple[int, Iterator[RawRow]]:
    """Radiology figures, caption → picture. Upstream's splits, by file name. Key: `image_id`."""
    found = find_files(folder, "data/*.parquet")
    splits = {path: split for path in found if (split := path.name.split("-")[0]) in SPLITS}
    rows = ((split, *row) for path, split in splits.items() for row in _rows(path, ROCO))
    raws = (RawRow(key, caption, image=image, split=split) for split, key, caption, image in rows)
    return _count(splits, ROCO), raws


def _count(paths: Iterable[Path], columns: Mapping[str, str]) -> int:
    return sum(_open(path, columns).metadata.num_rows for path in paths)


def _open(path: Path, columns: Mapping[str, str]) -> pq.ParquetFile:
    """A parquet file whose columns have been checked. columns: dotted name → a key of _KINDS."""
    with _whole(path):
        file = pq.ParquetFile(path)
    schema = file.schema_arrow.empty_table().flatten().schema  # fields of structs under dotted names
    for name, kind in columns.items():
        if name not in schema.names:
            names = ", ".join(schema.names)
            raise UserError(f"{path}: column {name} is missing, expected {kind}; columns here: {names}")
        if not _KINDS[kind](schema.field(name).type):
            raise UserError(f"{path}: column {name} is {schema.field(name).type}, expected {kind}")
    return file


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[Any, ...]]:
    """The checked columns of each row, strings as bytes: they may not be UTF-8."""
    file = _open(path, columns)
    with _whole(path):
        for batch in file.iter_batches(READ_ROWS, columns=[name.split(".")[0] for name in columns]):
            table = pa.Table.from_batches([batch]).flatten().select(list(columns))
            kinds = zip(table.columns, columns.values(), strict=True)
            values = [
                column if kind == "integer" else column.cast(pa.large_binary()) for column, kind in kinds
            ]
            yield from zip(*(column.to_pylist() for column in values), strict=True)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Name the file if it cannot be read as parquet."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: damaged, or not a parquet file ({what}); fetch it again") from error
