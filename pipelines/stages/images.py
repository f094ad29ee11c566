"""Stage images: each picture once, decoded and brought to the model's square, over a process pool.

Workers read and write files themselves, so no pixels travel between processes. A picture that cannot be
decoded rejects every row that names it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa

from janus.common.console import track
from janus.images import ImageError, ImagePreparation, decode_image, prepare_generation, prepare_understanding
from pipelines import tables
from pipelines.pool import KILLED_TWICE, KILLS_WORKER, Chunk, chunks_of, map_chunks
from pipelines.stage import require_stage, run_stage
from shards.duplicates import picture_hash

PREPARE = {"understanding": prepare_understanding, "generation": prepare_generation}


@dataclass(frozen=True)
class Prepared:
    """The result of a chunk: pictures in the part's order, and those that could not be read."""

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
        for kind in tables.KINDS.values():
            prepared = _prepare_kind(kind, work / "ingest", folder, preparation, workers)
            counts[kind] = sum(len(part.images) for part in prepared)
            failures += [(kind, *failure) for part in prepared for failure in part.failures]
        files = tables.row_files(work, ingested["notes"]["read"])
        tables.write_rejects(folder, [_rejects(files, failures)] if failures else [])
        return {"images": counts}

    return run_stage("images", work, inputs, body)


def _prepare_kind(
    kind: str, ingested: Path, folder: Path, preparation: ImagePreparation, workers: int
) -> list[Prepared]:
    """All pictures of a kind into part files, and the index of them."""
    table = ingested / f"{kind}.images.arrow"
    total = tables.read_columns([table], tables.IMAGE_SCHEMA, ["image_sha256"]).num_rows
    prepare = partial(_prepare_chunk, kind=kind, preparation=preparation)
    prepared = []
    with track(f"images {kind}", total, "images") as advance:
        for part in map_chunks(prepare, chunks_of(table, folder, kind), workers):
            prepared.append(part)
            advance(len(part.images) + len(part.failures))
    index = [(*image, part, i) for part, done in enumerate(prepared) for i, image in enumerate(done.images)]
    columns = [[entry[i] for entry in index] for i in range(len(tables.INDEX_SCHEMA))]
    tables.write_table(
        folder / f"{kind}.index.arrow", pa.table(columns, schema=tables.INDEX_SCHEMA), tables.INDEX_ROWS
    )
    return prepared


def _prepare_chunk(chunk: Chunk, kind: str, preparation: ImagePreparation) -> Prepared:
    """Decode and prepare one batch of encoded pictures into its part file, a record batch per picture."""
    done = Prepared([], [])
    encoded = chunk.read()
    with tables.table_writer(chunk.out, tables.IMAGE_SCHEMA) as writer:
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
            columns = [pa.array([sha256]), pa.array([pixels_HWC.tobytes()], pa.large_binary())]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=tables.IMAGE_SCHEMA))
            done.images.append((sha256, picture_hash(image)))
    return done


def _rejects(files: Iterable[Path], failures: list[tuple[str, str, str, str]]) -> pa.Table:
    """Every row whose picture failed. failures: kind, image_sha256, reason, detail."""
    import polars as pl  # not above: workers import this module and would wait for it

    columns = ["task", "source", "source_key", "image_sha256"]
    rows = pl.DataFrame(pl.from_arrow(tables.read_columns(files, tables.ROW_SCHEMA, columns)))
    failed = pl.DataFrame(failures, ["kind", "image_sha256", "reason", "detail"], orient="row")
    found = rows.with_columns(
        kind=pl.col("task").replace_strict(tables.KINDS, default=None), stage=pl.lit("images")
    ).join(failed, on=["kind", "image_sha256"], maintain_order="left")
    return found.select(tables.REJECT_SCHEMA.names).to_arrow().cast(tables.REJECT_SCHEMA)
