"""`shards preview`: one HTML page with the numbers of all shard rows and a gallery of a few samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from janus.common.errors import UserError
from janus.common.page import render_page, write_output
from janus.prompts import SPLITS, TASKS
from shards.manifest import TOKENIZER
from shards.preview.gallery import cards, choose, code_decoder
from shards.preview.summary import row_table, summarize
from shards.read import ShardSet

if TYPE_CHECKING:
    from shards.manifest import Manifest

TEMPLATES = Path(__file__).parent / "templates"
PAGE_BYTES = 20_000_000
BINS = 32


def write_preview(folder: Path, out: Path, model: str | None, samples: int) -> tuple[int, int]:
    """Write the page of `folder` to `out`; returns the numbers of samples in its gallery and in the folder.

    model: decodes the VQ codes. Raises UserError for incomplete shards, a model that did not make the codes,
    and a page that would pass 20 MB.
    """
    from tokenizers import Tokenizer

    shards = ShardSet.open(folder)
    decode = code_decoder(shards, model) if model else None
    rows = row_table(shards)
    chosen = choose(rows, samples)
    values: dict[str, Any] = {
        "folder": str(folder),
        "manifest": shards.manifest,
        "total": _totals(rows, shards.manifest),
        "groups": _groups(rows),
        "reject_examples": _reject_examples(shards.manifest),
        "samples": cards(shards, chosen, Tokenizer.from_file(str(folder / TOKENIZER)), decode),
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


def _totals(rows: pl.DataFrame, manifest: Manifest) -> dict[str, int]:
    """The figures at the top."""
    return {
        "rows": rows.height,
        "tokens": int(rows["tokens"].cast(pl.Int64).sum()),
        "supervised": int(rows["supervised"].sum()),
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "read": sum(counts.read for counts in manifest.counts.values()),
        "rejected": sum(sum(counts.rejected.values()) for counts in manifest.counts.values()),
    }


def _groups(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Each task and source with its counts and histogram; sources of a task share the bins."""
    groups = []
    for group in summarize(rows, 1).iter_rows(named=True):
        of_task = rows.filter(pl.col("task") == group["task"])
        lengths = of_task.filter(pl.col("source") == group["source"])["tokens"].to_numpy()
        lo, hi = of_task.select(lo=pl.col("tokens").min(), hi=pl.col("tokens").max()).row(0)
        groups.append({**group, "bars": histogram(lengths, lo, hi)})
    return sorted(groups, key=lambda group: TASKS.index(group["task"]))


def histogram(lengths: np.ndarray, lo: int, hi: int) -> list[dict[str, int]]:
    """Rows per bin of whole token counts between lo and hi: {lo, hi (both inclusive), rows}."""
    width = max(1, -(-(hi - lo + 1) // BINS))
    starts = range(lo, hi + 1, width)
    counts = np.bincount((lengths - lo) // width, minlength=len(starts)).tolist()
    return [{"lo": lo, "hi": lo + width - 1, "rows": n} for lo, n in zip(starts, counts, strict=True)]


def _reject_examples(manifest: Manifest) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The raw rows that the manifest names, by source and reason."""
    examples: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for example in manifest.recipe.get("reject_examples", ()):
        examples.setdefault((example["source"], example["reason"]), []).append(example)
    return examples
