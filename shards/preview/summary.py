"""What a folder of shards holds, in numbers: one table of rows, and its summary per task and source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from janus.prompts import SPLITS

if TYPE_CHECKING:
    from shards.manifest import Manifest
    from shards.read import ShardSet


def row_table(shards: ShardSet) -> pl.DataFrame:
    """One row per sample: split, task, source, index (in its split and task), tokens, supervised, bytes."""
    tables = []
    for split, task in shards.splits_tasks():
        rows = shards.rows(split, task)
        columns = {
            "source": pl.from_arrow(rows.sources),
            "tokens": rows.num_tokens,
            "supervised": rows.supervised_tokens.astype("int64"),
            "bytes": rows.row_bytes,
        }
        table = pl.DataFrame(columns).with_row_index("index")
        tables.append(table.with_columns(split=pl.lit(split), task=pl.lit(task)))
    return pl.concat(tables)


def summarize(rows: pl.DataFrame, length: int) -> pl.DataFrame:
    """One row per task and source; token counts over all splits, padding in rows of `length` tokens."""
    tokens = pl.col("tokens")
    return (
        rows.group_by("task", "source")
        .agg(
            *[(pl.col("split") == name).sum().alias(name) for name in SPLITS],
            tokens.min().alias("min"),
            tokens.median().alias("median"),
            tokens.quantile(0.95, "nearest").cast(pl.Int64).alias("p95"),
            tokens.max().alias("max"),
            (1 - tokens.clip(upper_bound=length).mean() / length).alias("padding"),
            pl.col("supervised").sum(),
            pl.col("bytes").sum(),
        )
        .sort("task", "source")
    )


def vq_summary(manifest: Manifest) -> str:
    """Which encoder made the VQ codes, and whether they mean anything."""
    if manifest.vq is None:
        return "none"
    random = manifest.vq["weights"] == "random"
    meaning = "random weights, so they MEAN NOTHING" if random else "a checkpoint's weights"
    return f"encoder sha256 {manifest.vq['encoder_sha256']}, {meaning}"
