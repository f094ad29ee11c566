"""What a build made: rows per task, source and split, and every row that was lost, by reason."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.table import Table

from janus.prompts import SPLITS


def print_summary(notes: dict[str, Any]) -> None:
    """Print the notes of the write stage."""
    console = Console()
    console.print(_written(notes["written"]))
    lost = _lost(notes["rejected"])
    console.print(lost if lost.row_count else "no row was set aside")
    read, written = sum(notes["read"].values()), sum(row[-1] for row in notes["written"])
    aside = sum(row[-1] for row in notes["rejected"])
    console.print(f"{read:,} rows read = {written:,} written + {aside:,} set aside")


def _written(rows: list[list[Any]]) -> Table:
    table = Table("task", "source", title="rows written")
    for name in (*SPLITS, "all"):
        table.add_column(name, justify="right")
    counts: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for task, source, split, count in rows:
        counts[task, source][split] = count
    for (task, source), of_split in counts.items():
        cells = [of_split.get(split, 0) for split in SPLITS]
        table.add_row(task, source, *(f"{cell:,}" for cell in [*cells, sum(cells)]))
    return table


def _lost(rows: list[list[Any]]) -> Table:
    table = Table("source", "stage", "reason", title="rows set aside")
    table.add_column("rows", justify="right")
    for *names, count in rows:
        table.add_row(*names, f"{count:,}")
    return table
