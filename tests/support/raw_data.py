"""Raw datasets made by hand in the hub's layouts: a few rows, each as dirty as a test wants it."""

import io
import json
import re
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import commands
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.cli import main
from shards.compare.check import STAMP


def build_command(data: Path, root: Path, tokenizer: Path, *more: object) -> list[object]:
    """`pipelines build` from `data` into work/ and shards/ of `root`."""
    folders = ["--data", data, "--work", root / "work", "--out", root / "shards", "--tokenizer", tokenizer]
    return ["build", *folders, *more]


run_well = partial(commands.run_well, main)


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file below the folder, but for the stamp of a full check, which holds times."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != STAMP)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def skipped(log: str) -> list[str]:
    """The stages that a command found unchanged."""
    return re.findall(r"^(\w+): unchanged, skipped$", log, re.M)


def picture(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (40, 30)) -> bytes:
    """A PNG of one colour."""
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def write_pubmedqa(data: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    """rows: pubid, question, long_answer."""
    path = data / "PubMedQA" / "pqa_labeled" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    types = {"pubid": pa.int32(), "question": pa.string(), "long_answer": pa.string()}
    pq.write_table(pa.Table.from_pylist(rows, schema or pa.schema(list(types.items()))), path)
    return path


def write_medical_vqa(data: Path, rows: Any, images: dict[str, bytes]) -> Path:
    """rows: as in dataset.json."""
    return _beside_images(
        data / "medical-vqa/vqa-rad", "train/dataset.json", json.dumps(rows).encode(), images
    )


def _beside_images(folder: Path, name: str, content: bytes, images: dict[str, bytes]) -> Path:
    files = {name: content} | {f"images/{image}": data for image, data in images.items()}
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder / name


def vqa_row(key: str, image: str, *turns: Any) -> dict[str, Any]:
    """A row whose turns alternate; the marker is the test's business."""
    conversation = [{"from": who, "value": value} for who, value in zip(cycle(("human", "gpt")), turns)]
    return {"id": key, "image": image, "conversations": conversation}


def write_artwork(data: Path, csv: bytes, images: dict[str, bytes]) -> Path:
    """csv: the whole file."""
    return _beside_images(data / "artwork/jade", "csvfile/image_text_en.csv", csv, images)


def write_roco(data: Path, rows: list[dict[str, Any]], split: str = "train") -> Path:
    """rows: image (bytes), image_id, caption."""
    path = data / "ROCO-radiology" / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{**row, "image": {"bytes": row["image"], "path": "x.jpg"}} for row in rows]
    schema = pa.schema([("image", image), ("image_id", pa.string()), ("caption", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path
