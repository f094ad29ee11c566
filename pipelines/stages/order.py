"""Which rows are written, where, and in what order: small columns only, no pictures.

Joins what the stages found out about each row, then applies `splits` and the shuffle.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa

from pipelines.stage import require_stage
from pipelines.stages.splits import assign_splits, lacking_train, stable_hash
from pipelines.tables import KINDS, REJECT_SCHEMA, read_columns, read_table

COLUMNS = ["task", "source", "split", "source_key", "history", "prompt", "image_sha256", "sha256"]


def plan_rows(
    work: Path, sources: list[str], seed: int, fraction: float
) -> tuple[pl.DataFrame, pa.Table, list[str]]:
    """The rows to write in their order, the rejects of this stage, and the sources `lacking_train`.

    The frame has sample_id, source, task, side, position (of the row) and image_position (of its
    picture in its kind's index; null for text).
    """
    usable = _usable_rows(work, sources)
    placed = assign_splits(usable, seed, fraction)
    set_aside = placed.filter(pl.col("reason").is_not_null())
    rejects = set_aside.with_columns(stage=pl.lit("write"), detail=pl.lit(None, pl.String))
    kept = placed.filter(pl.col("reason").is_null())
    kept = kept.with_columns(order=pl.Series(stable_hash(seed, kept["sample_id"].to_list()), dtype=pl.UInt64))
    columns = ["sample_id", "source", "task", "side", "position", "image_position"]
    return (
        kept.sort("order", "sample_id").select(columns),
        rejects.select(REJECT_SCHEMA.names).to_arrow().cast(REJECT_SCHEMA),
        lacking_train(usable),
    )


def _usable_rows(work: Path, sources: list[str]) -> pl.DataFrame:
    """Rows that tokenize and images kept, with what `assign_splits` asks for."""
    tables = [read_columns(work / "ingest" / f"{source}.rows.arrow", COLUMNS) for source in sources]
    rows = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables)))
    users = pl.col("history").list.eval(pl.element().struct.field("user"))
    rows = rows.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("position"),
        *(name for name in COLUMNS if name not in ("history", "prompt")),
        sample_id=pl.concat_str("source", "source_key", separator="/"),
        questions=pl.concat_list(users, "prompt"),
    )
    rows = rows.with_columns(num_tokens=_num_tokens(work)).filter(pl.col("num_tokens").is_not_null())
    rows = rows.join(_images(work), on=["task", "image_sha256"], how="left", maintain_order="left")
    return rows.filter(~pl.col("task").is_in(list(KINDS)) | pl.col("image_position").is_not_null())


def _num_tokens(work: Path) -> pl.Series:
    """Length of every row, null where tokenize set it aside."""
    parts = require_stage("tokenize", work)["notes"]["parts"]
    tables = [read_columns(work / "tokenize" / part, ["num_tokens"]) for part in parts]
    empty = pa.table({"num_tokens": pa.array([], pa.int32())})
    return pl.DataFrame(pl.from_arrow(pa.concat_tables([empty, *tables])))["num_tokens"]


def _images(work: Path) -> pl.DataFrame:
    """(task, image_sha256) → perceptual hash, and position in the kind's index."""
    frames = []
    for task, kind in KINDS.items():
        index = pl.DataFrame(pl.from_arrow(read_table(work / "images" / f"{kind}.index.arrow")))
        position = pl.int_range(pl.len(), dtype=pl.Int64).alias("image_position")
        frames.append(index.select(pl.lit(task).alias("task"), "image_sha256", "picture_hash", position))
    return pl.concat(frames)
