"""Artwork: a CSV per set with a picture's path and its caption, caption → picture."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from janus.common.errors import UserError
from pipelines.adapters.common import (
    IMAGE_READ_ROWS,
    all_files,
    find_files,
    printable,
    raw_batch,
    read_image,
    storable,
)

COLUMNS = ("image_path", "text_en")
MAX_FIELD = 1 << 27
"""Bytes of a CSV field; a caption that long is one row's trouble, not the file's."""


def files(folder: Path) -> list[Path]:
    """The CSVs and all pictures. Raises UserError if there is no CSV."""
    _tables(folder)
    return all_files(folder)


def count_rows(folder: Path) -> int:
    """Rows of all sets."""
    return sum(1 for path in _tables(folder) for _ in _rows(path))


def read(folder: Path) -> Iterator[pa.RecordBatch]:
    """The source's key is the picture's path; paths are relative to the data set's folder."""
    for path in _tables(folder):
        rows = _rows(path)
        while block := list(islice(rows, IMAGE_READ_ROWS)):
            raw = [_row(folder, line, row) for line, row in block]
            columns = zip(*raw, strict=True)
            names = ("source_key", "prompt", "image", "reason", "detail")
            yield raw_batch(len(raw), answer=[""] * len(raw), **dict(zip(names, columns, strict=True)))


def _tables(folder: Path) -> list[Path]:
    return find_files(folder, "*/csvfile/image_text_en.csv")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """(line, row). Bytes that are not UTF-8 stay behind as surrogates, to be seen per row."""
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        try:
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise UserError(
                    f"{path}: column {missing[0]} is missing, expected a UTF-8 CSV with {', '.join(COLUMNS)}"
                )
            yield from ((reader.line_num, row) for row in reader)
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.line_num}: not CSV ({error})") from error


def _row(folder: Path, line: int, row: dict[str, str | None]) -> tuple[object, ...]:
    """(source_key, prompt, image, reason, detail)."""
    name, caption = row["image_path"], row["text_en"]
    if name is None or caption is None:
        return f"line {line}", None, None, "wrong_type", "fewer fields than the header"
    key = printable(name).removeprefix("./")
    if None in row:  # csv.DictReader's place for what stands behind the last column
        return key, None, None, "wrong_type", "more fields than the header; is a comma not quoted?"
    if not storable(name + caption):
        return key, None, None, "invalid_text", "not UTF-8"
    return key, caption, *read_image(folder, name)
