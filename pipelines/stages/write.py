"""Stage write: rows, tokens, pictures and codes → shuffled shards, one folder, published whole.

Small columns decide which row goes where (`plan`); the shards are then streamed a few rows at a time. Where
the folder holds what the first generations gave (`append`), its files stay and new ones follow.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
import pyarrow as pa

from janus.checkpoint.folder import copy_tokenizer
from janus.common.console import track
from janus.common.files import exclusive_lock, hash_file
from janus.images import ImagePreparation
from janus.prompts import SPLITS, TASKS
from janus.tokens import TOKENIZER_FILES
from pipelines import tables
from pipelines.stage import CODE_VERSION, STAGE_FILE, rejects_of, run_stage
from pipelines.stages.append import Old, note_published, published
from pipelines.stages.plan import BEFORE, Outputs, plan_rows
from shards.compare.duplicates import write_hashes
from shards.manifest import (
    MANIFEST,
    Generation,
    Manifest,
    PictureEntry,
    ShardEntry,
    SourceCounts,
    write_manifest,
)
from shards.pictures import DRAWN, FOLDER, UNDERSTOOD
from shards.schema import CONTENT_SCHEMA
from shards.write import publish, write_pictures, write_shards

JOINED_ROWS = 256
"""Rows that are joined at a time."""

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
    outputs = Outputs.of(work)
    files = [tokenizer / name for name in TOKENIZER_FILES if (tokenizer / name).is_file()]
    chosen = {"keep_images": keep_images, "validation_fraction": validation_fraction, "seed": seed}
    inputs = {
        "stages": [{name: stage["fingerprint"] for name, stage in done.items()} for done in outputs.done],
        "out": str(out.absolute()),
        "tokenizer": {path.name: hash_file(path) for path in files},
        "format": format,
        "code_version": CODE_VERSION,
        **chosen,
    }
    tmp, aside = (out.with_name(f".{name}-{out.name}") for name in ("tmp", "old"))

    def body(folder: Path) -> dict[str, Any]:
        try:
            copy_tokenizer(tokenizer, tmp / "tokenizer")
            old = Old.of(out, known, inputs)
            notes = _write(outputs, folder, tmp, old, format, chosen)
            note_published(work, tmp, inputs, old)
            publish(tmp, out)
            return notes
        except OSError:
            shutil.rmtree(tmp, ignore_errors=True)
            raise

    out.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{out}: another build is writing this folder; wait for its end, or give another --out"
    with exclusive_lock(out.with_name(f".lock-{out.name}"), busy):
        shutil.rmtree(tmp, ignore_errors=True)  # of a build that was killed
        if aside.is_dir() and not out.exists():  # killed between the renames of publishing
            aside.rename(out)
        known = published(work, out)
        if known != inputs:  # stage.json only counts while the shards it describes are in `out`
            (work / "write" / STAGE_FILE).unlink(missing_ok=True)
        return run_stage("write", work, inputs, body)


def _write(
    outputs: Outputs, folder: Path, out: Path, old: Old | None, format: str, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """Shards and manifest into `out`, which already holds the tokenizer; gives the notes of stage.json."""
    sides, known = (old.sides(), old.generations) if old else ({}, 0)
    plan, rejected, divided = plan_rows(outputs, chosen["seed"], chosen["validation_fraction"], sides, known)
    for source in divided:
        click.echo(f"write: {source} has no train rows here, so its validation rows are divided by hash")
    tables.write_rejects(folder, rejected.drop("old").to_dicts())
    rejects = pl.concat([*_rejects_before(outputs, known), rejected])
    new, fresh = plan.filter(~pl.col("old")), rejects.filter(~pl.col("old"))
    if old:
        old.link(out)
        stay = f"{plan.height - new.height:,} that stay as they are"
        click.echo(f"write: {new.height:,} rows are appended to {stay}")
        divided = sorted({*divided, *old.manifest.recipe["validation_divided"]})
    first = Counter(entry.path.rpartition("-")[0] for entry in (old.manifest.files if old else ()))
    shards = _write_shards(outputs, out, new, format, first)
    pictures = _write_pictures(outputs, out, plan, chosen["keep_images"], format, first)
    counts = _count_sources(outputs.done[known:], new, fresh)
    manifest = Manifest(
        format=format,
        **_describe(outputs, out, plan, rejects, {**chosen, "validation_divided": divided}),
        counts=counts,
        shards=shards,
        pictures=pictures,
        generations=(Generation(counts, (*(e.path for e in shards), *(e.path for e in pictures))),),
    )
    write_manifest(out, old.extended(manifest) if old else manifest)
    return {
        "manifest_sha256": hash_file(out / MANIFEST),
        "written": _counted(plan, "task", "source", "side"),
        "rejected": _counted(rejects, "source", "stage", "reason"),
        "read": _read(outputs.done),
    }


def _rejects_before(outputs: Outputs, known: int) -> Iterator[pl.DataFrame]:
    """The rejects of the stages before, generation after generation. old: they are of the first `known`."""
    for number, folder in enumerate(outputs.folders):
        yield rejects_of(folder, BEFORE).select(pl.lit(number < known).alias("old"), pl.all())


def _count_sources(
    done: Sequence[Mapping[str, Any]], plan: pl.DataFrame, rejects: pl.DataFrame
) -> dict[str, SourceCounts]:
    """What became of the rows of some generations, by source."""
    written, counts = dict(plan.group_by("source").len().iter_rows()), {}
    for name, read in _read(done).items():
        reasons = dict(_counted(rejects.filter(source=name), "reason"))
        counts[name] = SourceCounts(read, reasons, written.get(name, 0))
    return counts


def _read(done: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Raw rows of each source in some generations."""
    read: Counter[str] = Counter()
    for stages in done:
        read.update(stages["ingest"]["notes"]["read"])
    return dict(read)


def _describe(
    outputs: Outputs, out: Path, plan: pl.DataFrame, rejects: pl.DataFrame, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """What the manifest says of tokenizer, pictures, codes and recipe, all generations'."""
    done = outputs.done[-1]
    examples = rejects.group_by("source", "stage", "reason", maintain_order=True).head(EXAMPLES)
    examples = examples.select(tables.REJECT_SCHEMA.names).sort("source", "reason", "source_key")
    codes = [one["vq"]["notes"] for one in outputs.done if one["vq"]["notes"]["images"]]
    return {
        "tokenizer": {"sha256": hash_file(out / "tokenizer" / "tokenizer.json"), "folder": "tokenizer"},
        "preprocessing": {
            **ImagePreparation.from_folder(out / "tokenizer").asdict(),
            "pixels": done["images"]["inputs"]["pixels"],
            "hashes_sha256": _write_hashes(outputs, plan, out),
        },
        "recipe": {
            "sources": done["ingest"]["inputs"]["sources"],
            "code_version": CODE_VERSION,
            "max_length": done["tokenize"]["inputs"]["max_length"],
            "pillow": done["images"]["inputs"]["pillow"],
            **chosen,
            "reject_examples": examples.to_dicts(),
        },
        "vq": {name: codes[-1][name] for name in ("encoder_sha256", "weights")} if codes else None,
    }


def _counted(frame: pl.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    """(values of the columns, rows that have them), sorted."""
    return frame.group_by(columns).len().sort(columns).rows()


def _used(plan: pl.DataFrame, kind: str) -> pl.Series:
    """The places of the pictures of a kind that rows of the plan show, sorted."""
    return plan[kind].explode().drop_nulls().unique().sort()


def _write_hashes(outputs: Outputs, plan: pl.DataFrame, out: Path) -> str:
    """The perceptual hashes of the pictures in the plan; gives the file's sha256."""
    index = outputs.pictures()
    used = [
        index.filter((pl.col("kind") == kind) & pl.col("image_position").is_in(_used(plan, kind).implode()))
        for kind in tables.KIND_OF.values()
    ]
    distinct = pl.concat(used).select("image_sha256", "picture_hash").unique().sort("image_sha256")
    return write_hashes(out, distinct.to_arrow())


def _write_pictures(
    outputs: Outputs, out: Path, plan: pl.DataFrame, keep_images: bool, format: str, first: Counter[str]
) -> tuple[PictureEntry, ...]:
    """Each picture that a new row reads and no old one; with keep_images each that it draws, too."""
    entries: list[PictureEntry] = []
    codec = outputs.done[-1]["images"]["inputs"]["pixels"]
    for kind in (UNDERSTOOD, *([DRAWN] if keep_images else [])):
        places = sorted(set(_used(plan, kind)) - set(_used(plan.filter("old"), kind)))
        first_folder, *later = outputs.files("images")
        pictures = tables.ImageRows(first_folder, kind, codec, later).take(places)
        entries += write_pictures(pictures, out, kind, codec, format, first=first[f"{FOLDER}/{kind}"])
    return tuple(entries)


def _write_shards(
    outputs: Outputs, out: Path, plan: pl.DataFrame, format: str, first: Counter[str]
) -> tuple[ShardEntry, ...]:
    """Join the plan's rows from all tables, a few at a time. first: how many files there are, by path."""
    rows = tables.RandomRows(list(chain(*outputs.rows())), tables.ROW_SCHEMA)
    tokens = tables.RandomRows(outputs.tokens(), tables.TOKEN_SCHEMA)
    codes = tables.RandomRows(outputs.files("vq/codes.arrow"), tables.CODE_SCHEMA)

    def join(part: pl.DataFrame) -> pa.RecordBatch:
        """These rows of the plan in the columns of CONTENT_SCHEMA."""
        positions = part["position"].to_numpy()
        columns: dict[str, pa.Array] = {}
        for table in (rows.take(positions), tokens.take(positions)):
            columns |= {name: table[name].combine_chunks() for name in table.column_names}
        columns |= {"sample_id": part["sample_id"].to_arrow(), "split": part["side"].to_arrow()}
        columns["image_tokens"] = _codes(codes, part[DRAWN])
        arrays = [columns[field.name].cast(field.type) for field in CONTENT_SCHEMA]
        advance(part.height)
        return pa.RecordBatch.from_arrays(arrays, schema=CONTENT_SCHEMA)

    entries: list[ShardEntry] = []
    with track("write", plan.height) as advance:
        for split, task in product(SPLITS, TASKS):
            chosen = plan.filter(side=split, task=task)
            batches = (join(part) for part in chosen.iter_slices(JOINED_ROWS))
            number = first[f"{split}/{task}"]
            entries += write_shards(batches, out, split=split, task=task, format=format, first=number)
    return tuple(entries)


def _codes(codes: tables.RandomRows, drawn: pl.Series) -> pa.ListArray:
    """The image tokens of each row, those of its pictures one after the other. drawn: lists of places."""
    if not (counts := drawn.list.len().fill_null(0).to_numpy()).any():
        return pa.array([[]] * len(drawn), pa.list_(pa.uint16()))
    places = drawn.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    taken = codes.take(places)["image_tokens"].combine_chunks()
    offsets = np.asarray(taken.offsets)[np.append(0, np.cumsum(counts, dtype=np.int64))]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), taken.values)
