"""Stage write: rows, tokens, pictures and codes → shuffled shards, one folder, published whole.

Small columns decide which row goes where; the shards are then streamed a few rows at a time.
"""

import shutil
from collections.abc import Mapping
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
from pipelines import tables
from pipelines.stage import CODE_VERSION, STAGE_FILE, gather_rejects, require_stage, run_stage
from pipelines.stages.splits import assign_splits, lacking_train, stable_hash
from shards.duplicates import write_pictures
from shards.manifest import MANIFEST, Manifest, ShardEntry, SourceCounts, write_manifest
from shards.schema import CONTENT_SCHEMA
from shards.write import BATCH_ROWS, publish, write_shards

BEFORE = ("ingest", "tokenize", "images", "vq")
EXAMPLES = 3
"""Rejected rows named per reason in the manifest."""


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
        manifest, mark = out / MANIFEST, work / "write" / STAGE_FILE
        if mark.is_file():  # it only counts while the shards it describes are in `out`
            published = require_stage("write", work)["notes"]["manifest_sha256"]
            if not manifest.is_file() or hash_file(manifest) != published:
                mark.unlink()
        return run_stage("write", work, inputs, body)


def _write(
    work: Path, folder: Path, out: Path, done: Mapping[str, Any], format: str, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """Shards and manifest into `out`, which already holds the tokenizer; gives the notes of stage.json."""
    plan, rejected, divided = plan_rows(work, done, chosen["seed"], chosen["validation_fraction"])
    for source in divided:
        click.echo(f"write: {source} has no train rows here, so its validation rows are divided by hash")
    tables.write_rejects(folder, rejected.to_dicts())
    rejects = pl.concat([gather_rejects(work, BEFORE), rejected])
    examples = rejects.group_by("source", "stage", "reason", maintain_order=True).head(EXAMPLES)
    examples = examples.select(rejects.columns).sort("source", "reason", "source_key")
    pictures = plan.drop_nulls("image_position").select("image_sha256", "picture_hash").unique()
    preparation = ImagePreparation.from_folder(out / "tokenizer")
    read, codes = done["ingest"]["notes"]["read"], done["vq"]["notes"]
    written = dict(plan.group_by("source").len().iter_rows())
    counts = {}
    for name, rows in read.items():
        reasons = dict(_counted(rejects.filter(source=name), "reason"))
        counts[name] = SourceCounts(rows, reasons, written.get(name, 0))
    manifest = Manifest(
        format=format,
        tokenizer={"sha256": hash_file(out / "tokenizer" / "tokenizer.json"), "folder": "tokenizer"},
        preprocessing={
            **preparation.asdict(),
            "pictures_sha256": write_pictures(out, pictures.sort("image_sha256").to_arrow()),
        },
        recipe={
            "sources": done["ingest"]["inputs"]["sources"],
            "code_version": CODE_VERSION,
            "max_length": done["tokenize"]["inputs"]["max_length"],
            "pillow": done["images"]["inputs"]["pillow"],
            **chosen,
            "validation_divided": divided,
            "reject_examples": examples.to_dicts(),
        },
        vq={name: codes[name] for name in ("encoder_sha256", "weights")} if codes["images"] else None,
        counts=counts,
        shards=_write_shards(work, out, done, plan, chosen["keep_images"], preparation.image_size, format),
    )
    write_manifest(out, manifest)
    return {
        "manifest_sha256": hash_file(out / MANIFEST),
        "written": _counted(plan, "task", "source", "side"),
        "rejected": _counted(rejects, "source", "stage", "reason"),
        "read": read,
    }


def plan_rows(
    work: Path, done: Mapping[str, Any], seed: int, fraction: float
) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """The rows to write in their order, the rejects of this stage, and the sources `lacking_train`.

    done: stage.json of ingest and tokenize. The rows have sample_id, source, task, side, position, and of
    their picture image_sha256, picture_hash, image_position (in the index of its kind; null for text).
    """
    usable = _usable_rows(work, done)
    placed = assign_splits(usable, seed, fraction)
    rejected = placed.drop_nulls("reason")
    rejected = rejected.with_columns(stage=pl.lit("write"), detail=pl.lit(None, pl.String))
    kept = placed.filter(pl.col("reason").is_null())
    kept = kept.sort(pl.Series(stable_hash(seed, kept["sample_id"].to_list())), "sample_id")
    columns = ["sample_id", "source", "task", "side", "position"]
    columns += ["image_sha256", "picture_hash", "image_position"]
    return kept.select(columns), rejected.select(tables.REJECT_SCHEMA.names), lacking_train(usable)


def _usable_rows(work: Path, done: Mapping[str, Any]) -> pl.DataFrame:
    """Rows that tokenize and images kept, with what `assign_splits` needs."""
    columns = ["task", "source", "split", "source_key", "history", "prompt", "image_sha256", "sha256"]
    files = tables.row_files(work, done["ingest"]["notes"]["read"])
    rows = tables.read_columns(files, tables.ROW_SCHEMA, columns)
    lengths = tables.read_columns(_token_files(work, done), tables.TOKEN_SCHEMA, ["num_tokens"])
    users = pl.col("history").list.eval(pl.element().struct.field("user"))
    rows = rows.select(
        pl.exclude("history", "prompt"),
        position=pl.int_range(pl.len(), dtype=pl.Int64),
        sample_id=pl.concat_str("source", "source_key", separator="/"),
        questions=pl.concat_list(users, "prompt"),
    )
    rows = rows.filter(lengths["num_tokens"].is_not_null())
    images = pl.concat(_picture_index(work, task) for task in tables.KINDS)
    rows = rows.join(images, on=["task", "image_sha256"], how="left", maintain_order="left")
    return rows.filter(~pl.col("task").is_in(list(tables.KINDS)) | pl.col("image_position").is_not_null())


def _picture_index(work: Path, task: str) -> pl.DataFrame:
    """The task's prepared pictures, and their position in the index."""
    file = work / "images" / f"{tables.KINDS[task]}.index.arrow"
    index = tables.read_columns([file], tables.INDEX_SCHEMA, ["image_sha256", "picture_hash"])
    return index.with_columns(task=pl.lit(task), image_position=pl.int_range(pl.len(), dtype=pl.Int64))


def _token_files(work: Path, done: Mapping[str, Any]) -> list[Path]:
    return [work / "tokenize" / part for part in done["tokenize"]["notes"]["parts"]]


def _counted(frame: pl.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    """(values of the columns, rows that have them), sorted."""
    return frame.group_by(columns).len().sort(columns).rows()


def _write_shards(
    work: Path, out: Path, done: Mapping[str, Any], plan: pl.DataFrame, keep: bool, size: int, format: str
) -> tuple[ShardEntry, ...]:
    """Join the plan's rows from all tables, a few at a time. keep: text-to-image originals too."""
    rows = tables.RandomRows(tables.row_files(work, done["ingest"]["notes"]["read"]), tables.ROW_SCHEMA)
    tokens = tables.RandomRows(_token_files(work, done), tables.TOKEN_SCHEMA)
    codes = tables.RandomRows([work / "vq" / "codes.arrow"], tables.CODE_SCHEMA)
    images = {task: tables.ImageRows(work / "images", kind) for task, kind in tables.KINDS.items()}

    def join(part: pl.DataFrame, task: str) -> pa.RecordBatch:
        """These rows of the plan in the columns of CONTENT_SCHEMA."""
        positions, pictures = part["position"].to_numpy(), part["image_position"]
        columns = dict.fromkeys(("image", "image_tokens"), pa.nulls(part.height))
        for table in (rows.take(positions), tokens.take(positions)):
            columns |= {name: table[name].combine_chunks() for name in table.column_names}
        columns |= {"sample_id": part["sample_id"].to_arrow(), "split": part["side"].to_arrow()}
        if task == "vqa" or (task == "t2i" and keep):
            columns["image"] = images[task].take(pictures)
        if task == "t2i":
            columns["image_tokens"] = codes.take(pictures.to_numpy())["image_tokens"].combine_chunks()
        arrays = [columns[field.name].cast(field.type) for field in CONTENT_SCHEMA]
        advance(part.height)
        return pa.RecordBatch.from_arrays(arrays, schema=CONTENT_SCHEMA)

    entries: list[ShardEntry] = []
    with track("write", plan.height) as advance:
        for split, task in product(SPLITS, TASKS):
            chosen = plan.filter(side=split, task=task)
            batches = (join(part, task) for part in chosen.iter_slices(BATCH_ROWS[task]))
            entries += write_shards(batches, out, split=split, task=task, image_size=size, format=format)
    return tuple(entries)
