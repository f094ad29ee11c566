"""Which rows are written, to which split, and in what order: small columns only, no pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from pipelines.stages.splits import assign_splits, lacking_train, stable_hash
from pipelines.tables import (
    INDEX_SCHEMA,
    KINDS,
    REJECT_SCHEMA,
    ROW_SCHEMA,
    TOKEN_SCHEMA,
    read_columns,
    row_files,
)

COLUMNS = ["task", "source", "split", "source_key", "history", "prompt", "image_sha256", "sha256"]


def plan_rows(
    work: Path, done: Mapping[str, Any], seed: int, fraction: float
) -> tuple[pl.DataFrame, pa.Table, list[str]]:
    """The rows to write in their order, the rejects of this stage, and the sources `lacking_train`.

    done: stage.json of ingest and tokenize. The frame has sample_id, source, task, side, position (of the
    row) and image_position (of its picture in the index of its kind; null for text).
    """
    usable = _usable_rows(work, done)
    placed = assign_splits(usable, seed, fraction)
    rejected = placed.filter(pl.col("reason").is_not_null())
    rejected = rejected.with_columns(stage=pl.lit("write"), detail=pl.lit(None, pl.String))
    kept = placed.filter(pl.col("reason").is_null())
    kept = kept.with_columns(order=pl.Series(stable_hash(seed, kept["sample_id"].to_list()), dtype=pl.UInt64))
    columns = ["sample_id", "source", "task", "side", "position", "image_position"]
    return (
        kept.sort("order", "sample_id").select(columns),
        rejected.select(REJECT_SCHEMA.names).to_arrow().cast(REJECT_SCHEMA),
        lacking_train(usable),
    )


def _usable_rows(work: Path, done: Mapping[str, Any]) -> pl.DataFrame:
    """Rows that tokenize and images kept, with what `assign_splits` needs."""
    files = row_files(work, done["ingest"]["notes"]["read"])
    rows = pl.DataFrame(pl.from_arrow(read_columns(files, ROW_SCHEMA, COLUMNS)))
    parts = [work / "tokenize" / part for part in done["tokenize"]["notes"]["parts"]]
    lengths = pl.DataFrame(pl.from_arrow(read_columns(parts, TOKEN_SCHEMA, ["num_tokens"])))
    users = pl.col("history").list.eval(pl.element().struct.field("user"))
    rows = rows.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("position"),
        *(name for name in COLUMNS if name not in ("history", "prompt")),
        sample_id=pl.concat_str("source", "source_key", separator="/"),
        questions=pl.concat_list(users, "prompt"),
    )
    rows = rows.with_columns(lengths["num_tokens"]).filter(pl.col("num_tokens").is_not_null())
    images = pl.concat(picture_index(work, task) for task in KINDS)
    rows = rows.join(images, on=["task", "image_sha256"], how="left", maintain_order="left")
    return rows.filter(~pl.col("task").is_in(list(KINDS)) | pl.col("image_position").is_not_null())


def picture_index(work: Path, task: str) -> pl.DataFrame:
    """task, image_sha256, picture_hash and image_position (in the index) of a task's prepared pictures."""
    file = work / "images" / f"{KINDS[task]}.index.arrow"
    index = pl.DataFrame(pl.from_arrow(read_columns([file], INDEX_SCHEMA, ["image_sha256", "picture_hash"])))
    position = pl.int_range(pl.len(), dtype=pl.Int64).alias("image_position")
    return index.select(pl.lit(task).alias("task"), "image_sha256", "picture_hash", position)
