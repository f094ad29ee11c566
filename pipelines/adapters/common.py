"""What adapters share: a row, finding files, reading parquet with its columns checked, picture files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from janus.common.errors import UserError

MAX_PICTURE = 1 << 29
"""Bytes of a picture: more than 89 million pixels of 16 bits need, and Pillow opens no more of them."""

READ_ROWS = 64
"""Rows of a parquet file that are in memory at a time, with their pictures."""


class RowError(ValueError):
    """Why a row cannot be used: its args are the reason, one of few, and the detail."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason, detail)


@dataclass(frozen=True)
class RawRow:
    """A row as an adapter reads it. Bytes in place of a string are not known to be UTF-8."""

    source_key: str | bytes | None
    prompt: str | bytes | None = None
    answer: str | bytes | None = ""
    history: list[dict[str, str]] = field(default_factory=list)  # of `user` and `assistant`
    image: bytes | None = None  # the encoded file
    split: str | None = None  # upstream's
    error: RowError | None = None  # why the row is set aside


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The files that match, sorted. Raises UserError if there are none, and for a link out of the folder."""
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


def open_parquet(path: Path, columns: Mapping[str, str]) -> pq.ParquetFile:
    """A parquet file whose columns have been checked.

    columns: dotted name → `string`, `integer` or `binary`. Raises UserError naming file, column and
    what was expected.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file ({_first_line(error)}); fetch it again") from error
    schema = file.schema_arrow.empty_table().flatten().schema  # fields of structs under dotted names
    for name, kind in columns.items():
        if name not in schema.names:
            names = ", ".join(schema.names)
            raise UserError(f"{path}: column {name} is missing, expected {kind}; columns here: {names}")
        if not _KINDS[kind](schema.field(name).type):
            raise UserError(f"{path}: column {name} is {schema.field(name).type}, expected {kind}")
    return file


_KINDS = {
    "string": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t),
    "integer": pa.types.is_integer,
    "binary": lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t),
}


def parquet_rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[Any, ...]]:
    """The checked columns of each row, strings as bytes. Raises UserError if the file is damaged."""
    file = open_parquet(path, columns)
    try:
        for batch in file.iter_batches(READ_ROWS, columns=[name.split(".")[0] for name in columns]):
            table = pa.Table.from_batches([batch]).flatten()
            values = [
                (table[name] if kind == "integer" else table[name].cast(pa.large_binary())).to_pylist()
                for name, kind in columns.items()
            ]
            yield from zip(*values, strict=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged parquet file ({_first_line(error)}); fetch it again") from error


def read_image(root: Path, name: str) -> bytes:
    """The picture that a row names, `name` relative to `root`. Raises RowError if there is none to use.

    A path in the data is not trusted: it must not be absolute, climb, or leave `root` by a link.
    """
    path = root / name
    if "\0" in name or "\\" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise RowError("image_path_refused", name)
    try:
        if not stays_below(root, path):
            raise RowError("image_path_refused", name)
        if not path.is_file():
            raise RowError("image_missing", name)
        if (size := path.stat().st_size) > MAX_PICTURE:  # before it is read: it may not fit into memory
            raise RowError("image_unreadable", f"{name}: {size} bytes, more than {MAX_PICTURE}")
        return path.read_bytes()
    except OSError as error:
        raise RowError("image_unreadable", f"{name}: {error.strerror}") from None


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
    return (str(error).strip() or type(error).__name__).splitlines()[0]
