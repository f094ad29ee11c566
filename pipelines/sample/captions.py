"""The text-to-image part: captioned shapes in artwork's CSVs, captioned phantoms in ROCO's parquet files.

No caption is used twice, so ROCO's own train, validation and test share nothing.
"""

import csv
import io
from itertools import product
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sample.scenes import COLUMNS, ROWS, TONES, Disc, draw_phantom, shuffled_scenes

SETS = {"tiles": 50, "glass": 34}
"""Artwork's sets: pictures of each."""

SPLITS = {"train": 16, "validation": 20, "test": 4}
"""ROCO's splits: pictures of each."""

ROCO_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
ROCO_SCHEMA = pa.schema({"image": ROCO_IMAGE, "image_id": pa.string(), "caption": pa.string()})


def write_artwork(folder: Path, seed: int) -> list[str]:
    """Write every set; gives the captions."""
    scenes = iter(shuffled_scenes(seed))
    captions = []
    for name, pictures in SETS.items():
        (folder / name / "images").mkdir(parents=True)
        (folder / name / "csvfile").mkdir()
        path = folder / name / "csvfile" / "image_text_en.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["image_path", "text_en"])
            for number in range(pictures):
                scene = next(scenes)
                scene.draw().save(folder / name / "images" / f"{number}.png")
                table.writerow([f"./{name}/images/{number}.png", scene.caption])
                captions.append(scene.caption)
    return captions


def write_roco(folder: Path, seed: int) -> list[str]:
    """Write every split; gives the captions."""
    places = list(product(ROWS, COLUMNS))
    pairs = [pair for pair in product(places, places) if pair[0] < pair[1]]
    phantoms = list(product(pairs, product(TONES, TONES)))
    drawn = iter(Random(f"roco:{seed}").sample(phantoms, sum(SPLITS.values())))
    captions = []
    (folder / "data").mkdir(parents=True)
    for split, pictures in SPLITS.items():
        rows = [_roco_row(f"SAMPLE_{split}_{number:05d}", *next(drawn)) for number in range(pictures)]
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows, ROCO_SCHEMA), path)
        captions += [row["caption"] for row in rows]
    return captions


def _roco_row(key: str, places: tuple, tones: tuple[str, str]) -> dict:
    """One phantom with two discs. Captions begin with a blank, as they do upstream."""
    placed = [(y, x, tone) for (y, x), tone in zip(places, tones, strict=True)]
    data = io.BytesIO()
    discs = [Disc(COLUMNS[x], ROWS[y], 0.1, TONES[tone]) for y, x, tone in placed]
    draw_phantom((160, 144), discs).save(data, "JPEG", quality=90)
    first, second = (f"a {tone} disc at the {y} {x}" for y, x, tone in placed)
    return {
        "image": {"bytes": data.getvalue(), "path": f"{key}.jpg"},
        "image_id": key,
        "caption": f" Phantom with {first} and {second}.",
    }
