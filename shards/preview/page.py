"""The numbers of all rows of a folder of shards; one HTML page with them and a gallery of a few samples."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from janus.common.errors import UserError
from janus.common.page import render_page, write_output
from janus.prompts import SPLITS, TASKS
from shards.preview.gallery import cards, choose, code_decoder
from shards.read import ShardSet

TEMPLATES = Path(__file__).parent / "templates"
PAGE_BYTES = 20_000_000
BINS = 32


def row_table(shards: ShardSet) -> pl.DataFrame:
    """One row per sample: split, task, source, index (in its split and task), and numbers of it.

    These are tokens, supervised, bytes, and understood and drawn pictures.
    """
    tables = []
    for split, task in shards.splits_tasks():
        rows = shards.rows(split, task)
        columns = {
            "source": pl.from_arrow(rows.column("source")),
            "tokens": rows.num_tokens,
            "supervised": rows.supervised_tokens.astype("int64"),
            "bytes": rows.row_bytes(),
            "understood": rows.understood,
            "drawn": rows.drawn,
        }
        table = pl.DataFrame(columns).with_row_index("index")
        tables.append(table.with_columns(split=pl.lit(split), task=pl.lit(task)))
    return pl.concat(tables)


def summarize(rows: pl.DataFrame, length: int) -> pl.DataFrame:
    """One row per task and source; token counts over all splits, padding in rows of `length` tokens."""
    tokens = pl.col("tokens")
    groups = rows.group_by("task", "source").agg(
        *[(pl.col("split") == name).sum().alias(name) for name in SPLITS],
        min=tokens.min(),
        median=tokens.median(),
        p95=tokens.quantile(0.95, "nearest").cast(pl.Int64),
        max=tokens.max(),
        padding=1 - tokens.clip(upper_bound=length).mean() / length,
        supervised=pl.col("supervised").sum(),
        bytes=pl.col("bytes").sum(),
    )
    return groups.sort("task", "source")


def write_preview(folder: Path, out: Path, model: str | None, samples: int) -> tuple[int, int]:
    """Write the page of `folder` to `out`; returns the numbers of samples in its gallery and in the folder.

    model: decodes the VQ codes. Raises UserError for incomplete shards, a model that did not make the codes,
    and a page that would pass 20 MB.
    """
    shards = ShardSet.open(folder)
    decode = code_decoder(shards, model) if model else None
    rows = row_table(shards)
    chosen = choose(rows, samples)
    values: dict[str, Any] = {
        "folder": str(folder),
        "manifest": shards.manifest,
        "groups": _groups(rows),
        "samples": cards(shards, chosen, decode),
        "tasks": [task for task in TASKS if task in chosen["task"]],
        "splits": [split for split in SPLITS if split in chosen["split"]],
        "source_names": sorted(chosen["source"].unique()),
        "model": model,
    }
    page = render_page(TEMPLATES, "preview", values)
    if len(page) > PAGE_BYTES:
        raise UserError(f"{out}: would be {len(page) / 1e6:.1f} MB, more than 20; give fewer --samples")
    write_output(out, page)
    return chosen.height, rows.height


def _groups(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Each task and source with its counts and histogram; sources of a task share the bins."""
    groups = []
    for group in summarize(rows, 1).iter_rows(named=True):
        of_task = rows.filter(task=group["task"])
        lengths = of_task.filter(source=group["source"])["tokens"].to_numpy()
        lo, hi = of_task.select(lo=pl.min("tokens"), hi=pl.max("tokens")).row(0)
        groups.append({**group, "bars": histogram(lengths, lo, hi)})
    return sorted(groups, key=lambda group: TASKS.index(group["task"]))


def histogram(lengths: np.ndarray, lo: int, hi: int) -> list[dict[str, int]]:
    """Rows per bin of whole token counts between lo and hi: {lo, hi (both inclusive), rows}."""
    width = max(1, -(-(hi - lo + 1) // BINS))
    starts = range(lo, hi + 1, width)
    counts = np.bincount((lengths - lo) // width, minlength=len(starts)).tolist()
    return [{"lo": lo, "hi": lo + width - 1, "rows": n} for lo, n in zip(starts, counts, strict=True)]
