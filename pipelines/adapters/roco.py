"""ROCO: radiology figures with captions, caption → picture. Upstream's splits, by file name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from janus.prompts import SPLITS
from pipelines.adapters.common import IMAGE_READ_ROWS, find_files, open_parquet, parquet_batches, raw_batch

COLUMNS = {"image.bytes": "binary", "image_id": "string", "caption": "string"}


def files(folder: Path) -> list[Path]:
    """The parquet files of every split."""
    return [path for path in find_files(folder, "data/*.parquet") if path.name.split("-")[0] in SPLITS]


def count_rows(folder: Path) -> int:
    """Rows of all splits."""
    return sum(open_parquet(path, COLUMNS).metadata.num_rows for path in files(folder))


def read(folder: Path) -> Iterator[pa.RecordBatch]:
    """The source's key is `image_id`. A row without bytes is set aside."""
    for path in files(folder):
        for batch in parquet_batches(path, COLUMNS, IMAGE_READ_ROWS):
            image = pc.struct_field(batch["image"], "bytes").cast(pa.large_binary())
            reason = pc.if_else(image.is_null(), pa.scalar("image_missing"), pa.scalar(None, pa.string()))
            yield raw_batch(
                batch.num_rows,
                source_key=batch["image_id"],
                split=[path.name.split("-")[0]] * batch.num_rows,
                prompt=batch["caption"],
                answer=[""] * batch.num_rows,
                image=image,
                reason=reason,
            )
