"""ROCO: radiology figures with captions, caption → picture. Upstream's splits, by file name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from janus.prompts import SPLITS
from pipelines.adapters.common import RawRow, find_files, open_parquet, parquet_rows

COLUMNS = {"image_id": "string", "caption": "string", "image.bytes": "binary"}


def _tables(folder: Path) -> list[Path]:
    return [path for path in find_files(folder, "data/*.parquet") if path.name.split("-")[0] in SPLITS]


def count_rows(folder: Path) -> int:
    return sum(open_parquet(path, COLUMNS).metadata.num_rows for path in _tables(folder))


def read(folder: Path) -> Iterator[RawRow]:
    """The source's key is `image_id`."""
    for path in _tables(folder):
        for key, caption, image in parquet_rows(path, COLUMNS):
            yield RawRow(key, caption, image=image, split=path.name.split("-")[0])
