"""Artwork: a CSV per set with a picture's path and its caption, caption → picture."""

import csv
from collections.abc import Iterator
from pathlib import Path

from janus.common.errors import UserError
from pipelines.adapters.raw import RawRow, RowError, find_files, printable, read_image

COLUMNS = ("image_path", "text_en")
MAX_FIELD = 1 << 27
"""Bytes of a CSV field: an overlong caption spoils its row, not the file."""


def read_artwork(folder: Path) -> tuple[int, Iterator[RawRow]]:
    """Number of rows, and the rows. Their key is the picture's path, relative to the folder."""
    paths = find_files(folder, "*/csvfile/image_text_en.csv")
    count = sum(1 for path in paths for _ in _lines(path))
    return count, (_row(folder, line, row) for path in paths for line, row in _lines(path))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """(line, row). Bytes that are not UTF-8 become surrogates, which `_row` looks for."""
    csv.field_size_limit(MAX_FIELD)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for name in COLUMNS:
                if name not in (reader.fieldnames or []):
                    expected = f"expected a UTF-8 CSV with {', '.join(COLUMNS)}"
                    raise UserError(f"{path}: column {name} is missing, {expected}")
            yield from ((reader.line_num, row) for row in reader)
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.line_num}: not CSV ({error})") from error


def _row(folder: Path, line: int, row: dict[str, str | None]) -> RawRow:
    name, caption = row["image_path"], row["text_en"]
    key = f"line {line}"
    try:
        if name is None or caption is None:
            raise RowError("wrong_type", "fewer fields than the header")
        key = printable(name).removeprefix("./")
        if None in row:  # csv.DictReader's place for fields beyond the last column
            raise RowError("wrong_type", "more fields than the header; is a comma not quoted?")
        if printable(name + caption) != name + caption:
            raise RowError("invalid_text", "not UTF-8")
        return RawRow(key, caption, image=read_image(folder, name))
    except RowError as error:
        return RawRow(key, error=error)
