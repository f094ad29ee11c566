"""Records of CSV and TSV files. Bytes that are not UTF-8 become lone surrogates, which ingest finds."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from janus.common.errors import UserError
from pipelines.forms.pictures import RowError
from pipelines.forms.row import MAX_ROW, Record, Records


def read_table(path: Path) -> Records:
    """Rows of a CSV, or of a TSV by its suffix, whose first line names the columns."""
    with _table(path) as reader:
        last = end = reader.line_num
        for row in reader:
            if _END in row.values():
                return
            last, end = end, reader.line_num
            yield _table_record(end, row)
        raise csv.Error(f"the row after line {last} has a quote that is not closed")


_END = "\0end"
"""A row behind the last: a quote that is not closed swallows it."""


@contextmanager
def _table(path: Path) -> Iterator[csv.DictReader]:
    csv.field_size_limit(MAX_ROW)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(chain(file, [_END]), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            if not reader.fieldnames:
                raise UserError(f"{path}: empty, expected a line that names the columns")
            yield reader
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.line_num}: not CSV ({error})") from error


def column_names(path: Path) -> list[str]:
    """The columns of a CSV or TSV. Raises UserError if it is empty."""
    with _table(path) as reader:
        return list(reader.fieldnames or ())


def _table_record(line: int, row: dict[str | None, Any]) -> Record:
    if None in row:  # csv.DictReader's place for fields beyond the last column
        what = "more fields than the header; is a comma not quoted?"
        return Record(line, row, RowError("wrong_type", what))  # type: ignore[arg-type]
    if None in row.values():
        return Record(line, error=RowError("wrong_type", "fewer fields than the header"))
    return Record(line, row)  # type: ignore[arg-type]
