"""Stage images: each picture once, decoded and brought to the model's square, over a process pool.

Workers read and write files themselves, so no pixels travel between processes. A picture that cannot
be decoded sets aside every row that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa

from janus.common.console import track
from janus.images import ImageError, ImagePreparation, decode_image, prepare_generation, prepare_understanding
from pipelines.pool import KILLS_WORKER, map_chunks
from pipelines.rejects import write_rejects
from pipelines.stage import require_stage, run_stage
from pipelines.tables import (
    IMAGE_SCHEMA,
    INDEX_SCHEMA,
    KINDS,
    REJECT_SCHEMA,
    num_batches,
    part_name,
    read_batch,
    read_columns,
    table_writer,
    write_table,
)
from shards.similar import picture_hash

PREPARE = {"understanding": prepare_understanding, "generation": prepare_generation}


@dataclass(frozen=True)
class Chunk:
    """One record batch of encoded pictures to prepare."""

    images: Path
    batch: int
    part: Path
    kind: str
    preparation: ImagePreparation
    skip: frozenset[int] = frozenset()

    def names(self) -> list[str]:
        """Each picture's sha256, which `rejects.arrow` resolves to rows."""
        return [
            f"picture {sha256}" for sha256 in read_batch(self.images, self.batch)["image_sha256"].to_pylist()
        ]

    def __str__(self) -> str:
        return f"batch {self.batch} of {self.images}"


@dataclass(frozen=True)
class Prepared:
    """What became of a chunk: pictures in the part's order, and those that could not be read."""

    images: list[tuple[str, bytes | None]]  # image_sha256, picture_hash
    failures: list[tuple[str, str, str]]  # image_sha256, reason, detail


def prepare_images(work: Path, tokenizer: Path, workers: int) -> dict[str, Any]:
    """Prepare every picture of ingest; gives stage.json's content.

    Raises UserError if ingest has not run or preprocessor_config.json is missing.
    """
    before = require_stage("ingest", work)
    preparation = ImagePreparation.from_folder(tokenizer)
    inputs = {
        "ingest": before["fingerprint"],
        "preparation": preparation.asdict(),
        "pillow": PIL.__version__,
    }

    def body(folder: Path) -> dict[str, Any]:
        counts, failures = {}, []
        for kind in KINDS.values():
            prepared = _prepare_kind(kind, work / "ingest", folder, preparation, workers)
            counts[kind] = sum(len(part.images) for part in prepared)
            failures += [(kind, *failure) for part in prepared for failure in part.failures]
        write_rejects(folder, _rejects(work / "ingest", list(before["notes"]["read"]), failures))
        return {"images": counts}

    return run_stage("images", work, inputs, body)


def _prepare_kind(
    kind: str, ingested: Path, folder: Path, preparation: ImagePreparation, workers: int
) -> list[Prepared]:
    """All pictures of a kind into part files, and the index of them."""
    source = ingested / f"{kind}.images.arrow"
    chunks = [
        Chunk(source, batch, folder / part_name(kind, batch), kind, preparation)
        for batch in range(num_batches(source))
    ]
    prepared = []
    with track(f"images {kind}", read_columns(source, ["image_sha256"]).num_rows, "images") as advance:
        for part in map_chunks(prepare_chunk, chunks, workers):
            prepared.append(part)
            advance(len(part.images) + len(part.failures))
    index = [(*image, part, i) for part, done in enumerate(prepared) for i, image in enumerate(done.images)]
    columns = [[entry[i] for entry in index] for i in range(4)]
    write_table(folder / f"{kind}.index.arrow", pa.table(columns, schema=INDEX_SCHEMA))
    return prepared


def prepare_chunk(chunk: Chunk) -> Prepared:
    """Decode and prepare one batch into its part file, a record batch per picture."""
    done, failures = [], []
    encoded = read_batch(chunk.images, chunk.batch)
    with table_writer(chunk.part, IMAGE_SCHEMA) as writer:
        pictures = zip(encoded["image_sha256"].to_pylist(), encoded["image"], strict=True)
        for row, (sha256, data) in enumerate(pictures):
            if row in chunk.skip:
                failures.append((sha256, KILLS_WORKER, "a worker process died on it, twice"))
                continue
            try:
                image = decode_image(data.as_buffer().to_pybytes())
                pixels_HWC = PREPARE[chunk.kind](image, chunk.preparation)
            except ImageError as error:
                failures.append((sha256, "image_unreadable", str(error)))
                continue
            writer.write_batch(_one_image(sha256, pixels_HWC))
            done.append((sha256, picture_hash(image)))
    return Prepared(done, failures)


def _one_image(sha256: str, pixels_HWC: np.ndarray) -> pa.RecordBatch:
    size = pa.array([0, pixels_HWC.size], pa.int64())
    pixels = pa.py_buffer(np.ascontiguousarray(pixels_HWC))
    image = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, size.buffers()[1], pixels])
    return pa.RecordBatch.from_arrays([pa.array([sha256]), image], schema=IMAGE_SCHEMA)


def _rejects(
    ingested: Path, sources: Sequence[str], failures: list[tuple[str, str, str, str]]
) -> list[pa.Table]:
    """Every row whose picture failed."""
    if not failures:
        return []
    import polars as pl  # not above: workers import this module and would wait for it

    columns = ["task", "source", "source_key", "image_sha256"]
    rows = pa.concat_tables([read_columns(ingested / f"{s}.rows.arrow", columns) for s in sources])
    failed = pl.DataFrame(failures, ["kind", "image_sha256", "reason", "detail"], orient="row")
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    found = frame.with_columns(kind=pl.col("task").replace_strict(KINDS, default=None)).join(
        failed, on=["kind", "image_sha256"], maintain_order="left"
    )
    found = found.with_columns(stage=pl.lit("images"))
    return [found.select(REJECT_SCHEMA.names).to_arrow().cast(REJECT_SCHEMA)]
