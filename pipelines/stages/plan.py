"""What stage write writes: the generations' tables side by side; rows that are kept, where, in what order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import polars as pl

from pipelines import tables
from pipelines.stage import STAGES, generations, require_stage
from pipelines.stages.splits import assign_splits, lacking_train, stable_hash
from shards.compare.duplicates import questions_of

BEFORE = STAGES[:-1]

PLANNED = ["task", "source", "split", "source_key", "messages", "sha256"]
"""Columns of ROW_SCHEMA that decide which rows are written, where and in what order."""


@dataclass(frozen=True)
class Outputs:
    """What the stages before write have made, a folder and its stage.json by stage for each generation."""

    folders: list[Path]
    done: list[dict[str, dict[str, Any]]]

    @classmethod
    def of(cls, work: Path, stages: Sequence[str] = BEFORE) -> Self:
        """All generations. Raises UserError if a stage has not run in one."""
        folders = generations(work) or [work]
        return cls(folders, [{name: require_stage(name, folder) for name in stages} for folder in folders])

    def rows(self) -> list[list[Path]]:
        """Files of ROW_SCHEMA of each generation."""
        return [
            tables.row_files(folder, done["ingest"]["notes"]["read"])
            for folder, done in zip(self.folders, self.done, strict=True)
        ]

    def tokens(self) -> list[Path]:
        """Files of TOKEN_SCHEMA."""
        pairs = zip(self.folders, self.done, strict=True)
        return [f / "tokenize" / part for f, done in pairs for part in done["tokenize"]["notes"]["parts"]]

    def files(self, name: str) -> list[Path]:
        """A file or folder of each generation."""
        return [folder / name for folder in self.folders]

    def pictures(self) -> pl.DataFrame:
        """kind, image_sha256, picture_hash and image_position (in the kind's index) of prepared pictures."""
        columns = ["image_sha256", "picture_hash"]
        position = pl.int_range(pl.len(), dtype=pl.Int64).alias("image_position")
        indices = []
        for kind in tables.KIND_OF.values():
            index = tables.read_columns(
                self.files(f"images/{kind}.index.arrow"), tables.INDEX_SCHEMA, columns
            )
            indices.append(index.select(pl.lit(kind).alias("kind"), *columns, position))
        return pl.concat(indices)


def plan_rows(
    outputs: Outputs, seed: int, fraction: float, pinned: Mapping[str, str] | None = None, known: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """The rows of the shards in their order, the rejects of this stage, and the sources `lacking_train`.

    pinned: split by sample_id of the rows that are written, from the first `known` generations. The frame has
    sample_id, source, task, side, old, position (of the row) and, by kind, the places of its pictures in the
    kind's index (lists).
    """
    usable = _usable_rows(outputs, known)
    sides = pl.DataFrame(
        [*(pinned or {}).items()], {"sample_id": pl.String, "pinned": pl.String}, orient="row"
    )
    placed = usable.join(sides, on="sample_id", how="left", maintain_order="left")
    placed = assign_splits(placed, seed, fraction)
    rejected = placed.drop_nulls("reason")
    rejected = rejected.with_columns(stage=pl.lit("write"), detail=pl.lit(None, pl.String))
    kept = placed.filter(pl.col("reason").is_null())
    order = pl.Series(stable_hash(seed, kept["sample_id"].to_list()), dtype=pl.UInt64)
    columns = ["sample_id", "source", "task", "side", "old", "position", *tables.KIND_OF.values()]
    return (
        kept.sort(order, "sample_id").select(columns),
        rejected.select("old", *tables.REJECT_SCHEMA.names),
        lacking_train(usable),
    )


def _usable_rows(outputs: Outputs, known: int) -> pl.DataFrame:
    """Rows that tokenize and images kept, with what `assign_splits` needs. old: of the first generations."""
    rows = pl.concat(
        tables.read_columns(files, tables.ROW_SCHEMA, PLANNED).with_columns(old=pl.lit(number < known))
        for number, files in enumerate(outputs.rows())
    )
    lengths = tables.read_columns(outputs.tokens(), tables.TOKEN_SCHEMA, ["num_tokens"])
    rows = rows.with_columns(
        lengths["num_tokens"],
        position=pl.int_range(pl.len(), dtype=pl.Int64),
        sample_id=pl.concat_str("source", "source_key", separator="/"),
    )
    rows = rows.filter(pl.col("num_tokens").is_not_null())
    pictures = tables.pictures_of(rows, "position").join(
        outputs.pictures(), on=["kind", "image_sha256"], how="left", maintain_order="left"
    )
    lost = pictures.filter(pl.col("image_position").is_null())["position"].unique()
    own = pictures.group_by("position").agg(
        "image_sha256",
        "picture_hash",
        *(pl.col("image_position").filter(kind=kind).alias(kind) for kind in tables.KIND_OF.values()),
    )
    rows = rows.filter(~pl.col("position").is_in(lost.implode()))
    rows = rows.join(own, on="position", how="left", maintain_order="left")
    asked = questions_of(rows, "position").group_by("position", maintain_order=True).agg(questions="key")
    rows = rows.join(asked, on="position", how="left", maintain_order="left")
    return rows.drop("messages")
