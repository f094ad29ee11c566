"""`shards preview`: one HTML page with what a folder of shards holds, to be looked at.

The numbers are of all rows; the gallery is a sample of them (`gallery.py`), so that the page stays small.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from janus.common.errors import UserError
from janus.common.page import render_page, write_whole
from janus.prompts import SPLITS, TASKS
from shards.manifest import TOKENIZER
from shards.preview.gallery import cards, choose, code_decoder
from shards.preview.summary import row_table, summarize, vq_warning
from shards.read import ShardSet

if TYPE_CHECKING:
    from shards.manifest import Manifest

TEMPLATES = Path(__file__).parent / "templates"
PAGE_BYTES = 20_000_000
BINS = 32


def write_preview(folder: Path, out: Path, model: str | None, samples: int) -> tuple[int, int]:
    """Write the page of `folder` to `out`; gives how many samples are in its gallery, and how many there are.

    model: decodes the VQ codes, if given. Raises UserError for shards that are not whole, a model that
    did not make the codes, and a page that would pass 20 MB.
    """
    from tokenizers import Tokenizer

    shards = ShardSet.open(folder)
    decode = None if model is None else code_decoder(shards, model)
    rows = row_table(shards)
    chosen = choose(rows, samples)
    gallery = cards(shards, chosen, Tokenizer.from_file(str(folder / TOKENIZER)), decode)
    present = {name: chosen[name].unique().to_list() for name in ("task", "split")}
    values: dict[str, Any] = {
        "folder": str(folder),
        "manifest": shards.manifest,
        "vq_warning": vq_warning(shards.manifest),
        "total": _totals(rows, shards.manifest),
        "groups": _groups(rows),
        "sources": _sources(shards.manifest),
        "samples": gallery,
        "tasks": [task for task in TASKS if task in present["task"]],
        "splits": [split for split in SPLITS if split in present["split"]],
        "source_names": sorted(chosen["source"].unique()),
        "model": model,
    }
    page = render_page(TEMPLATES, "preview", values)
    if len(page) > PAGE_BYTES:
        raise UserError(f"{out}: would be {len(page) / 1e6:.1f} MB, more than 20; give fewer --samples")
    write_whole(out, page)
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
    groups = summarize(rows, 1).sort(pl.col("task").replace_strict(TASKS, range(len(TASKS))), "source")
    spans = rows.group_by("task").agg(lo=pl.col("tokens").min(), hi=pl.col("tokens").max())
    limits = {task: (lo, hi) for task, lo, hi in spans.iter_rows()}
    out = []
    for group in groups.iter_rows(named=True):
        mine = (pl.col("task") == group["task"]) & (pl.col("source") == group["source"])
        out.append(
            {**group, "bars": histogram(rows.filter(mine)["tokens"].to_numpy(), *limits[group["task"]])}
        )
    return out


def histogram(lengths: np.ndarray, lo: int, hi: int) -> list[dict[str, int]]:
    """Rows per bin of whole token counts between lo and hi: {lo, hi (both inclusive), rows}."""
    width = max(1, -(-(hi - lo + 1) // BINS))
    starts = np.arange(lo, hi + 1, width)
    counts = np.bincount((lengths - lo) // width, minlength=len(starts))
    return [
        {"lo": int(start), "hi": int(start) + width - 1, "rows": int(n)}
        for start, n in zip(starts, counts, strict=True)
    ]


def _sources(manifest: Manifest) -> list[dict[str, Any]]:
    """What became of each source's raw rows, with the examples that the manifest names."""
    examples: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for example in manifest.recipe.get("reject_examples", ()):
        examples.setdefault((example["source"], example["reason"]), []).append(example)
    return [
        {
            "name": source,
            "read": counts.read,
            "written": counts.written,
            "rejected": [
                {"reason": reason, "rows": rows, "examples": examples.get((source, reason), [])}
                for reason, rows in sorted(counts.rejected.items(), key=lambda item: -item[1])
            ],
        }
        for source, counts in sorted(manifest.counts.items())
    ]
