"""Rows set aside, with their reason: a table per stage, counts, the limit that stops a build, the summary.

Each stage writes its own `rejects.arrow`; `<work>/rejects.arrow` gathers them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from janus.common.errors import UserError
from janus.common.files import write_file
from janus.prompts import SPLITS
from pipelines.tables import REJECT_SCHEMA, read_table, write_table

if TYPE_CHECKING:
    import polars as pl

REJECTS = "rejects.arrow"
EXAMPLES = 3
"""Rows named per reason in the manifest."""

SPLIT_REASONS = ("duplicate", "duplicate_id", "leak")
"""Usable rows that are set aside because of other rows: they never stop a build."""


def write_rejects(folder: Path, tables: Iterable[pa.Table]) -> None:
    """The rejects of one stage."""
    write_table(folder / REJECTS, pa.concat_tables([REJECT_SCHEMA.empty_table(), *tables]))


def gather_rejects(work: Path, stages: Iterable[str]) -> pa.Table:
    """The rejects of all these stages, also written to `<work>/rejects.arrow`."""
    files = [work / stage / REJECTS for stage in stages]
    table = pa.concat_tables([REJECT_SCHEMA.empty_table(), *(read_table(f) for f in files if f.is_file())])
    write_file(work / REJECTS, lambda path: write_table(path, table))
    return table


def check_reject_rate(
    table: pa.Table, read: Mapping[str, int], lenient: Iterable[str], max_rate: float, work: Path
) -> None:
    """Raise UserError with the most frequent reason if more than `max_rate` of the rows read are unusable.

    read: rows per source. lenient: sources that may lack pictures.
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
    reason, times = counted["reason"].value_counts(sort=True).row(0)
    raise UserError(
        f"{counted.height:,} of {rows:,} rows cannot be used, more than --max-reject-rate {max_rate:g}; "
        f"most often {reason} ({times:,}); see {work / REJECTS}"
    )


def counts_by_reason(rejects: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Source → reason → rows."""
    counts: dict[str, dict[str, int]] = {}
    for source, reason, rows in rejects.group_by("source", "reason").len().sort("source", "reason").rows():
        counts.setdefault(source, {})[reason] = rows
    return counts


def examples_by_reason(rejects: pl.DataFrame) -> list[dict[str, Any]]:
    """Up to EXAMPLES rows per source, stage and reason."""
    first = rejects.group_by("source", "stage", "reason", maintain_order=True).head(EXAMPLES)
    return first.select(REJECT_SCHEMA.names).sort("source", "reason", "source_key").to_dicts()


def print_summary(notes: Mapping[str, Any]) -> None:
    """Print what a build made and what it lost. notes: those of the write stage."""
    from rich.console import Console
    from rich.table import Table

    written = Table("task", "source", title="rows written")
    for name in (*SPLITS, "all"):
        written.add_column(name, justify="right")
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for task, source, split, count in notes["written"]:
        counts.setdefault((task, source), {})[split] = count
    for names, of_split in counts.items():
        cells = [*(of_split.get(split, 0) for split in SPLITS), sum(of_split.values())]
        written.add_row(*names, *(f"{cell:,}" for cell in cells))
    lost = Table("source", "stage", "reason", title="rows set aside")
    lost.add_column("rows", justify="right")
    for *names, count in notes["rejected"]:
        lost.add_row(*names, f"{count:,}")
    console = Console()
    console.print(written)
    console.print(lost if lost.row_count else "no row was set aside")
    read, kept = sum(notes["read"].values()), sum(row[-1] for row in notes["written"])
    rejected = sum(row[-1] for row in notes["rejected"])
    console.print(f"{read:,} rows read = {kept:,} written + {rejected:,} set aside")
