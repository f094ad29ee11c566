"""Rows set aside: a table with source, key, stage, reason and detail; counts; and when to stop.

Each stage keeps its own `rejects.arrow`; `<work>/rejects.arrow` gathers them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from janus.common.errors import UserError
from janus.common.files import write_file
from pipelines.stage import STAGES
from pipelines.tables import REJECT_SCHEMA, read_table, write_table

if TYPE_CHECKING:
    import polars as pl

REJECTS = "rejects.arrow"
EXAMPLES = 3
"""Rows named per reason in the manifest."""

SPLIT_REASONS = ("duplicate", "duplicate_id", "leak")
"""Rows in order by themselves, set aside for the sake of others: they never stop a build."""


def reject_table(rows: Iterable[Mapping[str, str | None]]) -> pa.Table:
    """Rejects from dicts with the columns of REJECT_SCHEMA."""
    return pa.Table.from_pylist(list(rows), REJECT_SCHEMA)


def write_rejects(folder: Path, tables: Iterable[pa.Table]) -> None:
    """The rejects of one stage."""
    write_table(folder / REJECTS, pa.concat_tables([REJECT_SCHEMA.empty_table(), *tables]))


def gather_rejects(work: Path, until: str) -> pa.Table:
    """The rejects of all stages up to `until`, also written to `<work>/rejects.arrow`."""
    files = [work / stage / REJECTS for stage in STAGES[: STAGES.index(until) + 1]]
    table = pa.concat_tables([REJECT_SCHEMA.empty_table(), *(read_table(f) for f in files if f.is_file())])
    write_file(work / REJECTS, lambda path: write_table(path, table))
    return table


def check_reject_rate(
    table: pa.Table, read: Mapping[str, int], lenient: Iterable[str], max_rate: float, work: Path
) -> None:
    """Stop when more than `max_rate` of the rows read could not be used.

    read: rows per source. lenient: sources that may lack pictures. Raises UserError with the most
    frequent reason.
    """
    if not table.num_rows:
        return
    import polars as pl  # not above: the workers of every stage import this module and need none of it

    rejects = pl.DataFrame(pl.from_arrow(table))
    expected = pl.col("source").is_in(list(lenient)) & (pl.col("reason") == "image_missing")
    counted = rejects.filter(~expected & ~pl.col("reason").is_in(SPLIT_REASONS))
    rows = sum(read.values()) - rejects.filter(expected).height
    if counted.height <= max_rate * rows:
        return
    first = counted["reason"].value_counts(sort=True).row(0)
    raise UserError(
        f"{counted.height:,} of {rows:,} rows cannot be used, more than --max-reject-rate {max_rate:g}; "
        f"most often {first[0]} ({first[1]:,}); see {work / REJECTS}"
    )


def counts_by_reason(rejects: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Source → reason → rows."""
    counted = rejects.group_by("source", "reason").len().sort("source", "reason")
    counts: dict[str, dict[str, int]] = {}
    for source, reason, rows in counted.iter_rows():
        counts.setdefault(source, {})[reason] = rows
    return counts


def examples_by_reason(rejects: pl.DataFrame) -> list[dict[str, Any]]:
    """Up to EXAMPLES rows per source, stage and reason."""
    first = rejects.group_by("source", "stage", "reason", maintain_order=True).head(EXAMPLES)
    return first.select(REJECT_SCHEMA.names).sort("source", "reason", "source_key").to_dicts()
