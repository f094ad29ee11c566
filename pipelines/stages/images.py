"""Stage images: each picture once, decoded and brought to the model's square, over a process pool.

Workers read and write files themselves, so no pixels travel between processes. A picture that cannot be
decoded rejects every row that names it.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import PIL
import polars as pl
import pyarrow as pa

from janus.common.console import track
from janus.images import ImageError, ImagePreparation, decode_image, prepare_generation, prepare_understanding
from pipelines import tables
from pipelines.pool import KILLED, Chunk, chunks_of, map_chunks
from pipelines.stage import require_stage, run_stage
from shards.duplicates import picture_hash

PREPARE = {"understanding": prepare_understanding, "generation": prepare_generation}


Prepared = tuple[list[tuple[str, bytes | None]], list[tuple[str, str, str]]]
"""Pictures of a part in its order (image_sha256, picture_hash), failures (image_sha256, reason, detail)."""


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
            counts[kind] = sum(len(images) for images, _ in prepared)
            failures += [(kind, *failure) for _, failed in prepared for failure in failed]
        files = tables.row_files(work, ingested["notes"]["read"])
        tables.write_rejects(folder, _rejects(files, failures))
        return {"images": counts}

    return run_stage("images", work, inputs, body)


def _prepare_kind(
    kind: str, ingested: Path, folder: Path, preparation: ImagePreparation, workers: int
) -> list[Prepared]:
    """All pictures of a kind into part files, and the index of them."""
    table = ingested / f"{kind}.images.arrow"
    total = tables.read_columns([table], tables.IMAGE_SCHEMA, ["image_sha256"]).height
    prepare = partial(_prepare_chunk, kind=kind, preparation=preparation)
    prepared = []
    with track(f"images {kind}", total, "images") as advance:
        for part in map_chunks(prepare, chunks_of(table, folder, kind), workers):
            prepared.append(part)
            advance(len(part[0]) + len(part[1]))
    index = [(*image, p, i) for p, (images, _) in enumerate(prepared) for i, image in enumerate(images)]
    rows = [dict(zip(tables.INDEX_SCHEMA.names, entry, strict=True)) for entry in index]
    index_table = pa.Table.from_pylist(rows, tables.INDEX_SCHEMA)
    tables.write_table(folder / f"{kind}.index.arrow", index_table, tables.INDEX_ROWS)
    return prepared


def _prepare_chunk(chunk: Chunk, kind: str, preparation: ImagePreparation) -> Prepared:
    """Decode and prepare one batch of encoded pictures into its part file, a record batch per picture."""
    encoded, images, failures = chunk.read(), [], []
    with tables.table_writer(chunk.out, tables.IMAGE_SCHEMA) as writer:
        pictures = zip(encoded["image_sha256"].to_pylist(), encoded["image"], strict=True)
        for row, (sha256, data) in enumerate(pictures):
            if row in chunk.skip:
                failures.append((sha256, *KILLED))
                continue
            try:
                image = decode_image(data.as_py())
                pixels_HWC = PREPARE[kind](image, preparation)
            except ImageError as error:
                failures.append((sha256, "image_unreadable", str(error)))
                continue
            picture = {"image_sha256": sha256, "image": pixels_HWC.tobytes()}
            writer.write_batch(pa.RecordBatch.from_pylist([picture], tables.IMAGE_SCHEMA))
            images.append((sha256, picture_hash(image)))
    return images, failures


def _rejects(files: Iterable[Path], failures: list[tuple[str, str, str, str]]) -> list[dict[str, Any]]:
    """Every row whose picture failed. failures: kind, image_sha256, reason, detail."""
    rows = tables.read_columns(files, tables.ROW_SCHEMA, ["task", "source", "source_key", "image_sha256"])
    schema = dict.fromkeys(("kind", "image_sha256", "reason", "detail"), pl.String)
    failed = pl.DataFrame(failures, schema, orient="row").with_columns(stage=pl.lit("images"))
    rows = rows.with_columns(kind=pl.col("task").replace_strict(tables.KINDS, default=None))
    found = rows.join(failed, on=["kind", "image_sha256"], maintain_order="left")
    return found.select(tables.REJECT_SCHEMA.names).to_dicts()
