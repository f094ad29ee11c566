"""PubMedQA: question → long_answer, as text. Every subset present is read; the context is not used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.adapters.common import RawRow, find_files, open_parquet, parquet_rows

COLUMNS = {"pubid": "integer", "question": "string", "long_answer": "string"}


def _tables(folder: Path) -> list[Path]:
    return find_files(folder, "pqa_*/*.parquet")


def count_rows(folder: Path) -> int:
    return sum(open_parquet(path, COLUMNS).metadata.num_rows for path in _tables(folder))


def read(folder: Path) -> Iterator[RawRow]:
    """The source's key is `pubid`."""
    for path in _tables(folder):
        for pubid, question, answer in parquet_rows(path, COLUMNS):
            yield RawRow(None if pubid is None else str(pubid), question, answer)
