"""Stage write: rows, tokens, pictures and codes → shuffled shards, one folder, published whole.

What stands where is planned from small columns; the shards are then streamed a few rows at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
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
from pipelines.stages.order import plan_rows
from pipelines.tables import CODE_SCHEMA, KINDS, ROW_SCHEMA, TOKEN_SCHEMA, ImageRows, RandomRows, read_table
from shards.leaks import write_pictures
from shards.manifest import MANIFEST, Manifest, ShardEntry, SourceCounts, write_manifest
from shards.schema import CONTENT_SCHEMA
from shards.write import BATCH_ROWS, publish, write_shards

BEFORE = ("ingest", "tokenize", "images", "vq")


@dataclass(frozen=True)
class WriteOptions:
    """What decides the shards beyond the stages before."""

    out: Path
    tokenizer: Path
    format: str = "arrow"
    keep_images: bool = False  # text-to-image originals too; their codes are there anyway
    validation_fraction: float = 0.05
    seed: int = 0


def write(work: Path, options: WriteOptions) -> dict[str, Any]:
    """Write and publish `options.out`; gives stage.json's content.

    Raises UserError if a stage before has not run, `out` holds something else, or another build writes it.
    """
    done = {name: require_stage(name, work) for name in BEFORE}
    inputs = {
        "stages": {name: stage["fingerprint"] for name, stage in done.items()},
        "out": str(options.out.absolute()),
        "tokenizer": {path.name: hash_file(path) for path in _tokenizer_files(options.tokenizer)},
        "format": options.format,
        "keep_images": options.keep_images,
        "validation_fraction": options.validation_fraction,
        "seed": options.seed,
    }

    def body(folder: Path) -> dict[str, Any]:
        try:
            return _write(work, folder, done, inputs, options)
        except OSError:
            shutil.rmtree(_beside(options.out), ignore_errors=True)
            raise

    out = options.out
    out.parent.mkdir(parents=True, exist_ok=True)
    taken = f"{out}: another build is writing this folder; wait for its end, or give another --out"
    with exclusive_lock(out.with_name(f".lock-{out.name}"), taken):
        _forget_unless_published(work, out)
        return run_stage("write", work, inputs, body)


def _beside(out: Path) -> Path:
    return out.with_name(f".tmp-{out.name}")


def _forget_unless_published(work: Path, out: Path) -> None:
    """Drop the stage's mark if the shards it speaks of are not there."""
    manifest, mark = out / MANIFEST, work / "write" / STAGE_FILE
    if mark.is_file():
        published = require_stage("write", work)["notes"]["manifest_sha256"]
        if not manifest.is_file() or hash_file(manifest) != published:
            mark.unlink()


def _write(
    work: Path, folder: Path, done: dict[str, Any], inputs: dict[str, Any], options: WriteOptions
) -> dict[str, Any]:
    sources = list(done["ingest"]["notes"]["read"])
    plan, set_aside, divided = plan_rows(work, sources, options.seed, options.validation_fraction)
    for source in divided:
        click.echo(f"write: {source} has no train rows here, so its validation rows are divided by hash")
    write_rejects(folder, [set_aside])
    rejects = pl.DataFrame(pl.from_arrow(pa.concat_tables([gather_rejects(work, "vq"), set_aside])))
    tmp = _beside(options.out)
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    preparation = ImagePreparation.from_folder(options.tokenizer)
    entries = _write_shards(work, tmp, plan, preparation.image_size, done, options)
    copy_tokenizer(options.tokenizer, tmp / "tokenizer")
    written = dict(plan.group_by("source").len().iter_rows())
    rejected = counts_by_reason(rejects)
    manifest = Manifest(
        format=options.format,
        tokenizer={"sha256": inputs["tokenizer"]["tokenizer.json"], "folder": "tokenizer"},
        preprocessing={**preparation.asdict(), "pictures_sha256": _write_pictures(work, plan, tmp)},
        recipe=_recipe(done, rejects, options, divided),
        vq=_vq(done["vq"]["notes"]),
        counts={
            name: SourceCounts(read, rejected.get(name, {}), written.get(name, 0))
            for name, read in done["ingest"]["notes"]["read"].items()
        },
        shards=tuple(entries),
    )
    write_manifest(tmp, manifest)
    publish(tmp, options.out)
    return {
        "manifest_sha256": hash_file(options.out / MANIFEST),
        "written": plan.group_by("task", "source", "side").len().sort("task", "source", "side").rows(),
        "rejected": rejects.group_by("source", "stage", "reason")
        .len()
        .sort("source", "stage", "reason")
        .rows(),
        "read": done["ingest"]["notes"]["read"],
    }


def _recipe(
    done: dict[str, Any], rejects: pl.DataFrame, options: WriteOptions, divided: list[str]
) -> dict[str, Any]:
    """What the shards were built from, without paths of this machine."""
    return {
        "sources": done["ingest"]["inputs"]["sources"],
        "code_version": CODE_VERSION,
        "max_length": done["tokenize"]["inputs"]["max_length"],
        "pillow": done["images"]["inputs"]["pillow"],
        "keep_images": options.keep_images,
        "validation_fraction": options.validation_fraction,
        "seed": options.seed,
        "validation_divided": divided,
        "reject_examples": examples_by_reason(rejects),
    }


def _write_pictures(work: Path, plan: pl.DataFrame, out: Path) -> str:
    """The perceptual hashes of the pictures in the plan; gives the file's sha256."""
    indices = [read_table(work / "images" / f"{kind}.index.arrow") for kind in KINDS.values()]
    frames = [
        pl.DataFrame(pl.from_arrow(index.select(["image_sha256", "picture_hash"])))[
            plan.filter(pl.col("task") == task)["image_position"].unique().sort().cast(pl.UInt32)
        ]
        for task, index in zip(KINDS, indices, strict=True)
    ]
    return write_pictures(out, pl.concat(frames).unique().sort("image_sha256").to_arrow())


def _vq(notes: dict[str, Any]) -> dict[str, Any] | None:
    return {name: notes[name] for name in ("encoder_sha256", "weights")} if notes["images"] else None


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def _write_shards(
    work: Path, out: Path, plan: pl.DataFrame, image_size: int, done: dict[str, Any], options: WriteOptions
) -> list[ShardEntry]:
    """The rows of each split and task, in the plan's order."""
    joined = _Joined(work, done, options.keep_images)
    entries: list[ShardEntry] = []
    with track("write", plan.height) as advance:
        for split in SPLITS:
            for task in TASKS:
                rows = plan.filter((pl.col("side") == split) & (pl.col("task") == task))
                batches = _counted(joined.batches(rows, BATCH_ROWS[task]), advance)
                entries += write_shards(
                    batches, out, split=split, task=task, image_size=image_size, format=options.format
                )
    return entries


def _counted(batches: Iterator[pa.RecordBatch], advance: Any) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        advance(batch.num_rows)


class _Joined:
    """All stages' tables open, joined a few rows at a time."""

    def __init__(self, work: Path, done: dict[str, Any], keep_images: bool) -> None:
        self._keep_images = keep_images
        rows = [work / "ingest" / f"{source}.rows.arrow" for source in done["ingest"]["notes"]["read"]]
        parts = [work / "tokenize" / name for name in done["tokenize"]["notes"]["parts"]]
        self._rows = RandomRows(rows, ROW_SCHEMA)
        self._tokens = RandomRows(parts, TOKEN_SCHEMA)
        self._codes = RandomRows([work / "vq" / "codes.arrow"], CODE_SCHEMA)
        self._images = {task: ImageRows(work / "images", kind) for task, kind in KINDS.items()}

    def batches(self, plan: pl.DataFrame, size: int) -> Iterator[pa.RecordBatch]:
        """The plan's rows (of one task) in the columns of CONTENT_SCHEMA, `size` at a time."""
        for part in plan.iter_slices(size):
            positions = part["position"].to_numpy()
            columns = {name: part[name].to_arrow() for name in ("sample_id",)}
            columns["split"] = part["side"].to_arrow()
            for table in (self._rows.take(positions), self._tokens.take(positions)):
                for name in table.column_names:
                    columns.setdefault(name, table[name].combine_chunks())
            columns |= self._picture_columns(part["task"][0], part["image_position"])
            arrays = [columns[field.name].cast(field.type) for field in CONTENT_SCHEMA]
            yield pa.RecordBatch.from_arrays(arrays, schema=CONTENT_SCHEMA)

    def _picture_columns(self, task: str, positions: pl.Series) -> dict[str, pa.Array]:
        """Pixels of understanding; codes, and pixels where they are kept, of generation."""
        image = pa.nulls(len(positions), pa.large_binary())
        codes = pa.nulls(len(positions), CODE_SCHEMA.field("image_tokens").type)
        if task == "vqa" or (task == "t2i" and self._keep_images):
            image = self._images[task].take(positions)
        if task == "t2i":
            taken = self._codes.take(positions.cast(pl.Int64).to_numpy())
            codes = taken["image_tokens"].combine_chunks()
        return {"image": image, "image_tokens": codes}
