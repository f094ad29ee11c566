"""Stage vq: each generation picture → its 576 codes, by the frozen VQ encoder in float32.

The codes are computed here once, so training neither loads nor runs the encoder. They are kept a part
at a time in `<work>/.vq-parts/<key>/`, each part written whole: a run that was killed goes on behind its
last part. The key stands for the encoder's weights and the pictures; parts of another key are dropped.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa

from janus.checkpoint.folder import ModelFolder, open_model
from janus.common.console import track
from janus.common.errors import UserError
from janus.common.files import write_file
from janus.model.config import VQ_WEIGHTS
from pipelines.stage import CODE_VERSION, fingerprint, require_stage, run_stage
from pipelines.tables import CODE_SCHEMA, ImageRows, read_table, table_writer, write_table

PART_IMAGES = 16
"""Pictures of a part: at most so many are encoded again after a kill."""

NO_WEIGHTS = (
    "vq: WARNING: {model} has no VQ weights; image codes are of {instead}; give a checkpoint with --model"
)


def encode_images(work: Path, model: str) -> dict[str, Any]:
    """Encode every generation picture of the images stage; gives stage.json's content.

    model: as `janus.checkpoint.folder.open_model` takes it. Raises UserError if the images stage has not run,
    or its pictures are not of the model's size.
    """
    before = require_stage("images", work)
    if not before["notes"]["images"]["generation"]:
        encoder: dict[str, Any] = {"encoder_sha256": None, "weights": None}
        return run_stage("vq", work, {"images": before["fingerprint"], **encoder}, _no_codes)
    folder = open_model(model)
    check_size(work, before, folder)
    if not folder.has_weights:
        warning = NO_WEIGHTS.format(model=model, instead=VQ_WEIGHTS[folder.vq_weights])
        click.secho(warning, fg="yellow", bold=True, err=True)
    encoder = {"encoder_sha256": folder.vq_encoder_sha256(), "weights": folder.vq_weights}
    inputs = {"images": before["fingerprint"], **encoder}
    parts = work / ".vq-parts" / fingerprint({"version": CODE_VERSION, **inputs})
    done = run_stage(
        "vq", work, inputs, lambda out: encoder | _encode_all(work / "images", folder, parts, out)
    )
    shutil.rmtree(parts.parent, ignore_errors=True)
    return done


def check_size(work: Path, images: Mapping[str, Any], folder: ModelFolder) -> None:
    """Raise UserError unless the images stage (its stage.json) prepared pictures of the model's size."""
    prepared = images["inputs"]["preparation"]["image_size"]
    expected = folder.config.vision.image_size
    if prepared != expected:
        raise UserError(
            f"{work / 'images'}: pictures of {prepared} pixels, the VQ encoder of {folder.name} takes "
            f"{expected}; run stage images with --tokenizer naming that model's own folder"
        )


def _no_codes(out: Path) -> dict[str, Any]:
    write_table(out / "codes.arrow", CODE_SCHEMA.empty_table())
    return {"encoder_sha256": None, "weights": None, "images": 0}


def _encode_all(images: Path, folder: ModelFolder, parts: Path, out: Path) -> dict[str, Any]:
    parts.mkdir(parents=True, exist_ok=True)
    for other in set(parts.parent.iterdir()) - {parts}:
        shutil.rmtree(other)
    rows = ImageRows(images, "generation")
    starts = range(0, len(rows), PART_IMAGES)
    missing = [start for start in starts if not _is_whole(_part(parts, start), rows, start)]
    _encode_missing(rows, missing, folder, parts)
    with table_writer(out / "codes.arrow", CODE_SCHEMA) as writer:
        for start in starts:
            writer.write_table(read_table(_part(parts, start)))
    return {"images": len(rows)}


def _encode_missing(rows: ImageRows, missing: list[int], folder: ModelFolder, parts: Path) -> None:
    """Encode the parts that begin at `missing`, each written beside and renamed when whole."""
    if not missing:
        return
    from janus.generate.vq_encode import VQEncoder

    encoder = VQEncoder(folder)
    left = sum(_stop(rows, start) - start for start in missing)
    with track("vq", len(rows), "images", resumed=len(rows) - left) as advance:
        for start in missing:
            codes = []
            for first in range(start, _stop(rows, start), encoder.batch_size):
                last = min(first + encoder.batch_size, _stop(rows, start))
                codes.append(encoder.encode(rows.pixels(first, last)))
                advance(last - first)
            part = _codes(rows.index["image_sha256"][start : _stop(rows, start)], codes)
            write_file(_part(parts, start), partial(write_table, table=part))


def _part(parts: Path, start: int) -> Path:
    return parts / f"{start:09d}.arrow"


def _stop(rows: ImageRows, start: int) -> int:
    return min(start + PART_IMAGES, len(rows))


def _is_whole(path: Path, rows: ImageRows, start: int) -> bool:
    """Whether the part is there with every picture; one that the disk lost to a power cut is not."""
    try:
        found = read_table(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return False
    return found["image_sha256"].equals(rows.index["image_sha256"][start : _stop(rows, start)])


def _codes(image_sha256: pa.ChunkedArray, codes: list[np.ndarray]) -> pa.Table:
    """codes: uint16 (I, T) of each call."""
    codes_IT = np.concatenate(codes)
    offsets = pa.array(np.arange(len(codes_IT) + 1) * codes_IT.shape[1], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(codes_IT.reshape(-1)))
    return pa.table([image_sha256.combine_chunks(), lists], schema=CODE_SCHEMA)
