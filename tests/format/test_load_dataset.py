"""Hugging Face's `load_dataset` reads our shards and pictures of both formats.

In the benchmark's environment, which `make bench` makes: the project itself does not need the library.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from commands import execute
from paths import ROOT
from shard_factory import make_folder, make_row

from shards.manifest import SUFFIXES
from shards.read import ShardSet

PYTHON = ROOT / ".venv-bench/bin/python"
READ = """
import io, json, sys
from hashlib import sha256
from datasets import load_dataset
from PIL import Image

format, *files = sys.argv[1:]
rows, *pictures = (list(load_dataset(format, data_files=path, split="train")) for path in files)
if format == "webdataset":
    rows = [{**row["json"], "image_tokens": list(row.get("image_tokens.npy", []))} for row in rows]
hashes = {}
for picture in (picture for file in pictures for picture in file):
    if format == "webdataset":
        name, image = picture["json"]["image_sha256"], picture["webp"]
    else:
        name, image = picture["image_sha256"], Image.open(io.BytesIO(picture["image"]))
    hashes[name] = sha256(image.convert("RGB").tobytes()).hexdigest()
print(json.dumps([rows, hashes]))
"""


@pytest.fixture(scope="module", params=SUFFIXES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = {
        task: [make_row(task, "train", key, 64, 2) for key in range(9)] for task in ("text", "vqa", "edit")
    }
    folder = tmp_path_factory.mktemp(request.param)
    return make_folder(folder, {("train", task): rows for task, rows in tasks.items()}, 64, request.param)


def _loaded(cache: Path, format: str, *files: Path) -> list[Any]:
    """Rows and pictures' hashes as the library gives them."""
    offline = {"HF_HOME": cache, "HF_HUB_OFFLINE": 1, "PYTHONPATH": None}
    return json.loads(execute(PYTHON, "-c", READ, format, *files, **offline).stdout.splitlines()[-1])


@pytest.mark.skipif(not PYTHON.exists(), reason=f"{PYTHON} is not there; `make bench` makes it")
@pytest.mark.parametrize("task", ["text", "vqa", "edit"])
def test_rows_and_pictures_are_what_our_reader_gives(folder: Path, tmp_path: Path, task: str) -> None:
    shards = ShardSet.open(folder)
    format = shards.manifest.format
    files = [folder / "train" / f"{task}-00000{SUFFIXES[format]}", *sorted(folder.glob("pictures/u*"))]
    found, hashes = _loaded(tmp_path, format, *files)
    rows = shards.rows("train", task)
    assert len(found) == len(rows) == 9
    for index, row in enumerate(found):
        sample = rows.read(index)
        for name in ("sample_id", "split", "prompt", "answer"):
            assert row[name] == getattr(sample, name)
        assert row["input_ids"] == sample.input_ids.tolist()
        assert [[s["start"], s["end"], s["kind"]] for s in row["supervised"]] == sample.supervised.tolist()
        assert row["image_tokens"] == sample.image_tokens.tolist()
        assert [(m["role"], m["text"], tuple(m["pictures"])) for m in row["messages"]] == [
            (m.role, m.text, tuple(m.pictures)) for m in sample.messages
        ]
        assert [hashes[name] for name in sample.understood] == [
            sha256(pixels.tobytes()).hexdigest() for pixels in sample.images
        ]
