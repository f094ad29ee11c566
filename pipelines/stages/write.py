"""Stage write: rows, tokens, pictures and codes → shuffled shards, one folder, published whole.

`order` plans from small columns which row goes where; the shards are then streamed a few rows at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import click
import polars as pl
import pyarrow as pa

from janus.checkpoint.folder import copy_tokenizer
from janus.common.console import track
from janus.common.files import exclusive_lock, hash_file
from janus.images import ImagePreparation
from janus.prompts import SPLITS, TASKS
from janus.tokens import TOKENIZER_FILES
from pipelines.rejects import counts_by_reason, examples_by_reason, gather_rejects, write_rejects
from pipelines.stage import CODE_VERSION, STAGE_FILE, require_stage, run_stage
from pipelines.stages.order import picture_index, plan_rows
from pipelines.tables import CODE_SCHEMA, KINDS, ROW_SCHEMA, TOKEN_SCHEMA, ImageRows, RandomRows, row_files
from shards.duplicates import write_pictures
from shards.manifest import MANIFEST, Manifest, ShardEntry, SourceCounts, write_manifest
from shards.schema import CONTENT_SCHEMA
from shards.write import BATCH_ROWS, publish, write_shards

BEFORE = ("ingest", "tokenize", "images", "vq")


def run(
    work: Path,
    out: Path,
    tokenizer: Path,
    format: str,
    keep_images: bool,
    validation_fraction: float,
    seed: int,
) -> dict[str, Any]:
    """Write and publish the shards in `out`; gives stage.json's content.

    Raises UserError if a stage before has not run, `out` holds something else, or another build writes it.
    """
    done = {name: require_stage(name, work) for name in BEFORE}
    files = [tokenizer / name for name in TOKENIZER_FILES if (tokenizer / name).is_file()]
    chosen = {"keep_images": keep_images, "validation_fraction": validation_fraction, "seed": seed}
    inputs = {
        "stages": {name: stage["fingerprint"] for name, stage in done.items()},
        "out": str(out.absolute()),
        "tokenizer": {path.name: hash_file(path) for path in files},
        "format": format,
        **chosen,
    }
    tmp = out.with_name(f".tmp-{out.name}")

    def body(folder: Path) -> dict[str, Any]:
        try:
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.mkdir(parents=True)
            copy_tokenizer(tokenizer, tmp / "tokenizer")
            notes = _write(work, folder, tmp, done, format, chosen)
            publish(tmp, out)
            return notes
        except OSError:
            shutil.rmtree(tmp, ignore_errors=True)
            raise

    out.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{out}: another build is writing this folder; wait for its end, or give another --out"
    with exclusive_lock(out.with_name(f".lock-{out.name}"), busy):
        _forget_unless_published(work, out)
        return run_stage("write", work, inputs, body)


def _forget_unless_published(work: Path, out: Path) -> None:
    """Remove the stage's mark unless the shards it describes are in `out`."""
    manifest, mark = out / MANIFEST, work / "write" / STAGE_FILE
    if mark.is_file():
        published = require_stage("write", work)["notes"]["manifest_sha256"]
        if not manifest.is_file() or hash_file(manifest) != published:
            mark.unlink()


def _write(
    work: Path, folder: Path, out: Path, done: Mapping[str, Any], format: str, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """Shards and manifest into `out`, where the tokenizer is already; gives the notes of stage.json."""
    plan, rejected, divided = plan_rows(work, done, chosen["seed"], chosen["validation_fraction"])
    for source in divided:
        click.echo(f"write: {source} has no train rows here, so its validation rows are divided by hash")
    write_rejects(folder, [rejected])
    rejects = pl.DataFrame(pl.from_arrow(pa.concat_tables([gather_rejects(work, BEFORE), rejected])))
    preparation = ImagePreparation.from_folder(out / "tokenizer")
    joined = _Joined(work, done, chosen["keep_images"])
    entries: list[ShardEntry] = []
    with track("write", plan.height) as advance:
        for split, task in product(SPLITS, TASKS):
            rows = plan.filter((pl.col("side") == split) & (pl.col("task") == task))
            batches = joined.batches(rows, BATCH_ROWS[task], advance)
            size = preparation.image_size
            entries += write_shards(batches, out, split=split, task=task, image_size=size, format=format)
    read = done["ingest"]["notes"]["read"]
    written = dict(plan.group_by("source").len().iter_rows())
    reasons = counts_by_reason(rejects)
    encoder = {name: done["vq"]["notes"][name] for name in ("encoder_sha256", "weights")}
    counts = {name: SourceCounts(n, reasons.get(name, {}), written.get(name, 0)) for name, n in read.items()}
    manifest = Manifest(
        format=format,
        tokenizer={"sha256": hash_file(out / "tokenizer" / "tokenizer.json"), "folder": "tokenizer"},
        preprocessing={**preparation.asdict(), "pictures_sha256": _write_pictures(work, plan, out)},
        recipe={
            "sources": done["ingest"]["inputs"]["sources"],
            "code_version": CODE_VERSION,
            "max_length": done["tokenize"]["inputs"]["max_length"],
            "pillow": done["images"]["inputs"]["pillow"],
            **chosen,
            "validation_divided": divided,
            "reject_examples": examples_by_reason(rejects),
        },
        vq=encoder if done["vq"]["notes"]["images"] else None,
        counts=counts,
        shards=tuple(entries),
    )
    write_manifest(out, manifest)
    return {
        "manifest_sha256": hash_file(out / MANIFEST),
        "written": _counted(plan, "task", "source", "side"),
        "rejected": _counted(rejects, "source", "stage", "reason"),
        "read": read,
    }


def _counted(frame: pl.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    """(values of the columns, rows that have them), sorted."""
    return frame.group_by(columns).len().sort(columns).rows()


def _write_pictures(work: Path, plan: pl.DataFrame, out: Path) -> str:
    """The perceptual hashes of the pictures in the plan; gives the file's sha256."""
    used = plan.select("task", "image_position").unique()
    pictures = pl.concat(picture_index(work, task) for task in KINDS).join(used, on=used.columns, how="semi")
    distinct = pictures.select("image_sha256", "picture_hash").unique().sort("image_sha256")
    return write_pictures(out, distinct.to_arrow())


class _Joined:
    """The tables of all stages, open, joined a few rows at a time."""

    def __init__(self, work: Path, done: Mapping[str, Any], keep_images: bool) -> None:
        self._pictured = ("vqa", "t2i") if keep_images else ("vqa",)
        parts = [work / "tokenize" / name for name in done["tokenize"]["notes"]["parts"]]
        self._rows = RandomRows(row_files(work, done["ingest"]["notes"]["read"]), ROW_SCHEMA)
        self._tokens = RandomRows(parts, TOKEN_SCHEMA)
        self._codes = RandomRows([work / "vq" / "codes.arrow"], CODE_SCHEMA)
        self._images = {task: ImageRows(work / "images", kind) for task, kind in KINDS.items()}

    def batches(
        self, plan: pl.DataFrame, size: int, advance: Callable[[int], None]
    ) -> Iterator[pa.RecordBatch]:
        """The plan's rows (of one task) in the columns of CONTENT_SCHEMA, `size` at a time."""
        for part in plan.iter_slices(size):
            task, positions = part["task"][0], part["position"].to_numpy()
            columns = {name: pa.nulls(part.height) for name in ("image", "image_tokens")}
            for table in (self._rows.take(positions), self._tokens.take(positions)):
                columns |= {name: table[name].combine_chunks() for name in table.column_names}
            columns |= {"sample_id": part["sample_id"].to_arrow(), "split": part["side"].to_arrow()}
            if task in self._pictured:
                columns["image"] = self._images[task].take(part["image_position"])
            if task == "t2i":
                codes = self._codes.take(part["image_position"].to_numpy())
                columns["image_tokens"] = codes["image_tokens"].combine_chunks()
            arrays = [columns[field.name].cast(field.type) for field in CONTENT_SCHEMA]
            yield pa.RecordBatch.from_arrays(arrays, schema=CONTENT_SCHEMA)
            advance(part.height)
