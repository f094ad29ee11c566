"""Stage images: each picture once, decoded and brought to the model's square, over a process pool.

Workers read and write files themselves, so no pixels travel between processes. A picture that cannot be
decoded rejects every row that names it.
"""

from collections.abc import Callable, Iterable, Sequence
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
from shards.compare.duplicates import picture_hash
from shards.pictures import CODECS, DRAWN, UNDERSTOOD

PREPARE = {UNDERSTOOD: prepare_understanding, DRAWN: prepare_generation}


Prepared = tuple[list[tuple[str, bytes | None]], list[tuple[str, str, str]]]
"""Pictures of a part in its order (image_sha256, picture_hash), failures (image_sha256, reason, detail)."""


def run(
    work: Path, tokenizer: Path, pixels: str, strict_size: bool, workers: int, before: Sequence[Path] = ()
) -> dict[str, Any]:
    """Prepare every picture of ingest; gives stage.json's content.

    before: earlier generations, whose pictures the rows may show.
    Raises UserError if ingest has not run or preprocessor_config.json is missing.
    """
    ingested = require_stage("ingest", work)
    earlier = [require_stage("images", folder) for folder in before]
    preparation = ImagePreparation.from_folder(tokenizer)
    inputs = {
        "ingest": ingested["fingerprint"],
        "preparation": preparation.asdict(),
        "pillow": PIL.__version__,
        "pixels": pixels,
        "strict_size": strict_size,
        "before": [stage["fingerprint"] for stage in earlier],
    }

    def body(folder: Path) -> dict[str, Any]:
        counts: dict[str, int] = {}
        failures: list[tuple[str, ...]] = []
        prepare = partial(_prepare_chunk, preparation=preparation, pixels=pixels, strict_size=strict_size)
        for kind in tables.KIND_OF.values():
            prepared = _prepare_kind(prepare, kind, work / "ingest", folder, workers)
            counts[kind] = sum(len(images) for images, _ in prepared)
            failures += [(kind, *failure) for _, failed in prepared for failure in failed]
        files = tables.row_files(work, ingested["notes"]["read"])
        known = [failure for stage in earlier for failure in stage["notes"]["failures"]]
        tables.write_rejects(folder, _rejects(files, known + failures) if known or failures else [])
        return {"images": counts, "failures": failures}

    return run_stage("images", work, inputs, body)


def _prepare_kind(
    prepare: Callable[..., Prepared], kind: str, ingested: Path, folder: Path, workers: int
) -> list[Prepared]:
    """All pictures of a kind into part files, and the index of them."""
    table = ingested / f"{kind}.images.arrow"
    total = tables.read_columns([table], tables.IMAGE_SCHEMA, ["image_sha256"]).height
    prepared = []
    with track(f"images {kind}", total, "images") as advance:
        for part in map_chunks(partial(prepare, kind=kind), chunks_of(table, folder, kind), workers):
            prepared.append(part)
            advance(len(part[0]) + len(part[1]))
    index = [(*image, p, i) for p, (images, _) in enumerate(prepared) for i, image in enumerate(images)]
    rows = [dict(zip(tables.INDEX_SCHEMA.names, entry, strict=True)) for entry in index]
    index_table = pa.Table.from_pylist(rows, tables.INDEX_SCHEMA)
    tables.write_table(folder / f"{kind}.index.arrow", index_table, tables.INDEX_ROWS)
    return prepared


def _prepare_chunk(
    chunk: Chunk, kind: str, preparation: ImagePreparation, pixels: str, strict_size: bool
) -> Prepared:
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
                if strict_size and kind == DRAWN and image.size != (preparation.image_size,) * 2:
                    failures.append((sha256, "wrong_size", f"{image.width}×{image.height} pixels"))
                    continue
                pixels_HWC = PREPARE[kind](image, preparation)
            except ImageError as error:
                failures.append((sha256, "image_unreadable", str(error)))
                continue
            picture = {"image_sha256": sha256, "image": CODECS[pixels].encode(pixels_HWC)}
            writer.write_batch(pa.RecordBatch.from_pylist([picture], tables.IMAGE_SCHEMA))
            images.append((sha256, picture_hash(image)))
    return images, failures


def _rejects(files: Iterable[Path], failures: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Every row whose picture failed. failures: kind, image_sha256, reason, detail."""
    rows = tables.read_columns(files, tables.ROW_SCHEMA, ["source", "source_key", "messages"])
    schema = dict.fromkeys(("kind", "image_sha256", "reason", "detail"), pl.String)
    failed = pl.DataFrame(failures, schema, orient="row")
    found = tables.pictures_of(rows, "source", "source_key").join(
        failed, on=["kind", "image_sha256"], maintain_order="left"
    )
    found = found.unique(["source", "source_key"], keep="first", maintain_order=True)
    found = found.with_columns(stage=pl.lit("images"))
    return found.select(tables.REJECT_SCHEMA.names).to_dicts()
