"""The files of an evaluation: figures as JSON, predictions as Arrow, pictures as PNG.

pl.read_ipc("OUT/eval/validation.arrow").filter(~pl.col("correct")).select("prompt", "answer", "prediction")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from janus.common.files import write_file, write_text
from janus.generate.pictures import save_picture
from shards.schema import Sample
from trainer.evaluate.answers import exact_match

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("part", pa.string()),  # text, vqa, t2i or pubmedqa
        ("task", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("prediction", pa.string()),  # null where nothing is predicted but the next token
        ("correct", pa.bool_()),  # null likewise
        # vqa: token F1; pubmedqa: share of the likeliest answer; else token accuracy
        ("score", pa.float64()),
        ("nll", pa.float64()),  # −log p of the right answer: per token; pubmedqa: of the whole
    ]
)


def prediction_row(
    sample: Sample, part: str, nll: float, score: float, prediction: str | None = None
) -> dict[str, Any]:
    """One row of SCHEMA."""
    names = ("sample_id", "task", "split", "source", "prompt", "answer")
    correct = None if prediction is None else exact_match(prediction, sample.answer)
    figures = {"part": part, "nll": nll, "score": score, "prediction": prediction, "correct": correct}
    return {name: getattr(sample, name) for name in names} | figures


def write_results(
    folder: Path,
    name: str,
    result: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    picture: tuple[np.ndarray, Mapping[str, object]] | None,
) -> Path:
    """Write all files, each atomically and `name`.json last; returns the JSON's path."""
    folder.mkdir(parents=True, exist_ok=True)
    picture_path = folder / f"{name}-pictures.png"
    if picture is not None:
        save_picture(picture_path, *picture)
    table = pa.Table.from_pylist([dict(row) for row in rows], SCHEMA)

    def write_arrow(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            writer.write_table(table)

    write_file(folder / f"{name}.arrow", write_arrow)
    figures = {**result, "pictures": picture_path.name if picture is not None else None}
    path = folder / f"{name}.json"
    write_text(path, json.dumps(figures, indent=2, sort_keys=True) + "\n")
    return path
