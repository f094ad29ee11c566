"""What adapters share: finding files, opening parquet with its columns checked, picture files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from janus.common.errors import UserError
from pipelines.tables import RAW_SCHEMA

MAX_PICTURE = 1 << 29
"""Bytes of a picture: more than 89 million pixels of 16 bits need, and Pillow opens no more of them."""

READ_ROWS = 512
"""Rows of a batch that carries no pictures."""

IMAGE_READ_ROWS = 64
"""Rows of a batch that carries pictures."""


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The files that match, sorted. Raises UserError for none, and for a link out of the folder."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise UserError(f"{folder}: no file matches {pattern}; is this the data set's own layout?")
    for path in found:
        if not stays_below(folder, path):
            raise UserError(f"{path}: a link that leaves {folder}; put the file itself there")
    return found


def stays_below(folder: Path, path: Path) -> bool:
    """Whether a path, all links followed, lies in the folder. A link to itself counts as the link."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def all_files(folder: Path) -> list[Path]:
    """Every file below the folder, sorted; hidden ones, such as a download's own notes, aside."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def open_parquet(path: Path, columns: Mapping[str, str]) -> pq.ParquetFile:
    """A parquet file whose columns have been checked.

    columns: dotted name → `string`, `integer` or `binary`. Raises UserError naming file, column and
    what was expected.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file ({_first_line(error)}); fetch it again") from error
    for name, kind in columns.items():
        found = _find_type(file.schema_arrow, name)
        if found is None:
            names = ", ".join(file.schema_arrow.names)
            raise UserError(f"{path}: column {name} is missing, expected {kind}; columns here: {names}")
        if not _KINDS[kind](found):
            raise UserError(f"{path}: column {name} is {found}, expected {kind}")
    return file


_KINDS = {
    "string": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t),
    "integer": pa.types.is_integer,
    "binary": lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t),
}


def _find_type(schema: pa.Schema, dotted: str) -> pa.DataType | None:
    """The type at a dotted name, None if it is not there."""
    fields: Any = schema
    for name in dotted.split("."):
        index = fields.get_field_index(name) if hasattr(fields, "get_field_index") else -1
        if index < 0:
            return None
        found = fields.field(index).type
        fields = found
    return found


def parquet_batches(path: Path, columns: Mapping[str, str], rows: int) -> Any:
    """Batches of the checked columns. Raises UserError if the file breaks off in the middle."""
    file = open_parquet(path, columns)
    try:
        yield from file.iter_batches(rows, columns=[name.split(".")[0] for name in columns])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged parquet file ({_first_line(error)}); fetch it again") from error


def raw_batch(rows: int, **columns: Any) -> pa.RecordBatch:
    """A batch of RAW_SCHEMA; absent columns are null, an absent history is empty."""
    if "history" not in columns:
        columns["history"] = pa.ListArray.from_arrays(
            pa.array([0] * (rows + 1), pa.int32()), pa.array([], RAW_SCHEMA.field("history").type.value_type)
        )
    arrays = []
    for field in RAW_SCHEMA:
        values = columns.get(field.name)
        if values is None:
            values = pa.nulls(rows, field.type)
        arrays.append(values if isinstance(values, pa.Array) else pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(
        [array.cast(field.type) for array, field in zip(arrays, RAW_SCHEMA, strict=True)], schema=RAW_SCHEMA
    )


def read_image(root: Path, name: str) -> tuple[bytes | None, str | None, str | None]:
    """(bytes, reason, detail) of a picture that a row names, `name` relative to `root`.

    A path from the data is not to be trusted: it must not be absolute, climb, or leave `root` by a link.
    """
    if "\0" in name or "\\" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        return None, "image_path_refused", name
    path = root / name
    try:
        if not stays_below(root, path):
            return None, "image_path_refused", name
        if not path.is_file():
            return None, "image_missing", name
        if (size := path.stat().st_size) > MAX_PICTURE:  # before it is read: it may be larger than memory
            return None, "image_unreadable", f"{name}: {size} bytes, more than {MAX_PICTURE}"
        return path.read_bytes(), None, None
    except OSError as error:
        return None, "image_unreadable", f"{name}: {error.strerror}"


def storable(text: str) -> bool:
    """Whether a text can be written as UTF-8 (lone surrogates cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """A text for a reject's key or detail, whatever it holds."""
    return text.encode(errors="backslashreplace").decode()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
