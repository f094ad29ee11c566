"""Stage vq: each generation picture → its 576 codes, by the frozen VQ encoder in float32.

The codes are computed here once, so training neither loads nor runs the encoder. They are collected in parts
in `<work>/.vq-parts/<key>/`, each an atomic write: a killed run resumes after its last part. The key hashes
the encoder's weights and the pictures; parts of another key are deleted.
"""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from janus.checkpoint.folder import ModelFolder, open_model
from janus.common.console import track
from janus.common.errors import UserError
from janus.common.files import write_file
from janus.device import use
from pipelines.pool import Chunk, chunks_of
from pipelines.stage import CODE_VERSION, fingerprint, require_stage, run_stage
from pipelines.tables import CODE_SCHEMA, INDEX_ROWS, ImageRows, read_table, table_writer, write_table
from shards.pictures import DRAWN


def run(work: Path, model: str, device: str, device_id: int) -> dict[str, Any]:
    """Encode every generation picture of the images stage; gives stage.json's content.

    model: as `janus.checkpoint.folder.open_model` takes it. Raises UserError if the images stage has not run,
    or its pictures are not of the model's size. device, device_id: where the encoder computes.
    """
    images = require_stage("images", work)
    encoder: dict[str, Any] = {"encoder_sha256": None, "weights": None}
    folder: ModelFolder | None = None
    if images["notes"]["images"][DRAWN]:
        folder = open_model(model)
        prepared, expected = images["inputs"]["preparation"]["image_size"], folder.config.vision.image_size
        if prepared != expected:
            raise UserError(
                f"{work / 'images'}: pictures of {prepared} pixels, the VQ encoder of {folder.name} takes "
                f"{expected}; run stage images with --tokenizer naming that model's own folder"
            )
        if folder.checkpoint is None:
            lacks = f"vq: WARNING: {model} has no VQ weights; image codes are of random weights, so they MEAN"
            click.secho(f"{lacks} NOTHING; give a checkpoint with --model", fg="yellow", bold=True, err=True)
        encoder["encoder_sha256"] = folder.vq_encoder_sha256()
        encoder["weights"] = "checkpoint" if folder.checkpoint else "random"
    inputs = {"images": images["fingerprint"], **encoder}
    parts = work / ".vq-parts" / fingerprint({"version": CODE_VERSION, **inputs})

    def body(out: Path) -> dict[str, Any]:
        parts.mkdir(parents=True, exist_ok=True)
        for other in set(parts.parent.iterdir()) - {parts}:
            shutil.rmtree(other)
        rows = ImageRows(work / "images", DRAWN, images["inputs"]["pixels"])
        chunks = []
        if folder:
            chunks = chunks_of(work / "images" / f"{DRAWN}.index.arrow", parts, "codes")
            _encode_missing(chunks, rows, folder, partial(use, device, "float32", device_id, True))
        with table_writer(out / "codes.arrow", CODE_SCHEMA) as writer:
            for chunk in chunks:
                writer.write_table(read_table(chunk.out))
        return encoder | {"images": len(rows)}

    done = run_stage("vq", work, inputs, body)
    shutil.rmtree(parts.parent, ignore_errors=True)
    return done


def _encode_missing(
    chunks: Sequence[Chunk], rows: ImageRows, folder: ModelFolder, use_device: Callable[[], Any]
) -> None:
    """Write the missing parts. A chunk is INDEX_ROWS pictures, a batch of the index."""
    missing = {chunk: chunk.read()["image_sha256"] for chunk in chunks if not _is_whole(chunk)}
    if not missing:
        return
    from janus.generate.pictures import vq_encoder

    use_device()
    encode = vq_encoder(folder)
    left = sum(map(len, missing.values()))
    with track("vq", len(rows), "images", resumed=len(rows) - left) as advance:
        for chunk, image_sha256 in missing.items():
            codes = []
            for row in range(len(image_sha256)):
                picture = chunk.batch * INDEX_ROWS + row
                codes.append(encode(rows.pixels(picture, folder.config.vision.image_size)))
                advance(1)
            table = pa.table([image_sha256, pa.array(codes, CODE_SCHEMA.types[1])], schema=CODE_SCHEMA)
            write_file(chunk.out, partial(write_table, table=table))


def _is_whole(chunk: Chunk) -> bool:
    """Whether the part has every picture; one that a power cut damaged does not."""
    try:
        found = read_table(chunk.out)["image_sha256"].to_pylist()
    except (FileNotFoundError, pa.ArrowInvalid):
        return False
    return found == chunk.read()["image_sha256"].to_pylist()
