"""Stage images: each picture once, decoded and brought to the model's square, over a process pool.

Workers read and write files themselves, so no pixels travel between processes. A picture that cannot
be decoded sets aside every row that names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa

from janus.common.console import track
from janus.images import ImageError, ImagePreparation, decode_image, prepare_generation, prepare_understanding
from pipelines.pool import KILLED_TWICE, KILLS_WORKER, Chunk, chunks_of, map_chunks
from pipelines.rejects import write_rejects
from pipelines.stage import require_stage, run_stage
from pipelines.tables import (
    IMAGE_SCHEMA,
    INDEX_ROWS,
    INDEX_SCHEMA,
    KINDS,
    REJECT_SCHEMA,
    ROW_SCHEMA,
    read_columns,
    row_files,
    table_writer,
    write_table,
)
from shards.duplicates import picture_hash

PREPARE = {"understanding": prepare_understanding, "generation": prepare_generation}


@dataclass(frozen=True)
class Prepared:
    """What became of a chunk: pictures in the part's order, and those that could not be read."""

    images: list[tuple[str, bytes | None]]  # image_sha256, picture_hash
    failures: list[tuple[str, str, str]]  # image_sha256, reason, detail


def run(work: Path, tokenizer: Path, workers: int) -> dict[str, Any]:
    """Prepare every picture of ingest; gives stage.json's content.

    Raises UserError if ingest has not run or preprocessor_config.json is missing.
    """
    ingested = require_stage("ingest", work)
    preparation = ImagePreparation.from_folder(tokenizer)
    inputs = {
        "ingest": ingested["fingerprint"],
        "preparation": preparation.asdict(),
        "pillow": PIL.__version__,
    }

    def body(folder: Path) -> dict[str, Any]:
        counts, failures = {}, []
        for kind in KINDS.values():
            prepared = _prepare_kind(kind, work / "ingest", folder, preparation, workers)
            counts[kind] = sum(len(part.images) for part in prepared)
            failures += [(kind, *failure) for part in prepared for failure in part.failures]
        files = row_files(work, ingested["notes"]["read"])
        write_rejects(folder, [_rejects(files, failures)] if failures else [])
        return {"images": counts}

    return run_stage("images", work, inputs, body)


def _prepare_kind(
    kind: str, ingested: Path, folder: Path, preparation: ImagePreparation, workers: int
) -> list[Prepared]:
    """All pictures of a kind into part files, and the index of them."""
    table = ingested / f"{kind}.images.arrow"
    total = read_columns([table], IMAGE_SCHEMA, ["image_sha256"]).num_rows
    prepare = partial(prepare_chunk, kind=kind, preparation=preparation)
    prepared = []
    with track(f"images {kind}", total, "images") as advance:
        for part in map_chunks(prepare, chunks_of(table, folder, kind), workers):
            prepared.append(part)
            advance(len(part.images) + len(part.failures))
    index = [(*image, part, i) for part, done in enumerate(prepared) for i, image in enumerate(done.images)]
    columns = [[entry[i] for entry in index] for i in range(len(INDEX_SCHEMA))]
    write_table(folder / f"{kind}.index.arrow", pa.table(columns, schema=INDEX_SCHEMA), INDEX_ROWS)
    return prepared


def prepare_chunk(chunk: Chunk, kind: str, preparation: ImagePreparation) -> Prepared:
    """Decode and prepare one batch of encoded pictures into its part file, a record batch per picture."""
    done = Prepared([], [])
    encoded = chunk.read()
    with table_writer(chunk.out, IMAGE_SCHEMA) as writer:
        pictures = zip(encoded["image_sha256"].to_pylist(), encoded["image"], strict=True)
        for row, (sha256, data) in enumerate(pictures):
            if row in chunk.skip:
                done.failures.append((sha256, KILLS_WORKER, KILLED_TWICE))
                continue
            try:
                image = decode_image(data.as_buffer().to_pybytes())
                pixels_HWC = PREPARE[kind](image, preparation)
            except ImageError as error:
                done.failures.append((sha256, "image_unreadable", str(error)))
                continue
            writer.write_batch(_one_image(sha256, pixels_HWC))
            done.images.append((sha256, picture_hash(image)))
    return done


def _one_image(sha256: str, pixels_HWC: np.ndarray) -> pa.RecordBatch:
    offsets = pa.py_buffer(np.array([0, pixels_HWC.size], np.int64))
    pixels = pa.py_buffer(np.ascontiguousarray(pixels_HWC))
    image = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pixels])
    return pa.RecordBatch.from_arrays([pa.array([sha256]), image], schema=IMAGE_SCHEMA)


def _rejects(files: Iterable[Path], failures: list[tuple[str, str, str, str]]) -> pa.Table:
    """Every row whose picture failed. failures: kind, image_sha256, reason, detail."""
    import polars as pl  # not above: workers import this module and would wait for it

    columns = ["task", "source", "source_key", "image_sha256"]
    rows = pl.DataFrame(pl.from_arrow(read_columns(files, ROW_SCHEMA, columns)))
    failed = pl.DataFrame(failures, ["kind", "image_sha256", "reason", "detail"], orient="row")
    found = rows.with_columns(
        kind=pl.col("task").replace_strict(KINDS, default=None), stage=pl.lit("images")
    ).join(failed, on=["kind", "image_sha256"], maintain_order="left")
    return found.select(REJECT_SCHEMA.names).to_arrow().cast(REJECT_SCHEMA)
