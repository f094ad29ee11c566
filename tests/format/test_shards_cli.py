"""`shards inspect`, `show` and `verify`, run as a user runs them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from paths import ROOT
from PIL import Image
from shard_factory import make_folder, make_mixed, make_row

from shards.cli import main

SIZE = 8


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_inspect_counts_rows_tokens_and_rejects(tmp_path: Path, format: str) -> None:
    lengths = [10, 20, 30, 40]
    rows = [
        make_row("text", "train", n, input_ids=[1] * n, num_tokens=n, supervised=[{"start": 4, "end": 9}])
        for n in lengths
    ]
    validation = [make_row("vqa", "validation", 0, SIZE)]
    make_folder(tmp_path, {("train", "text"): rows, ("validation", "vqa"): validation}, SIZE, format)
    result = run("inspect", tmp_path, "--length", 50)
    assert result.exit_code == 0, result.output
    cells = {line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]] for line in lines(result)}
    source, *numbers, size = cells["text"]
    assert source == "pubmedqa"
    assert numbers == ["4", "0", "0", "10", "25", "40", "40", "50.0%", "20"]
    assert int(size.replace(",", "")) > 4 * sum(lengths)
    assert cells["vqa"][:4] == ["medical-vqa", "0", "1", "0"]
    assert "rejected: image missing │ 1" in result.output


def lines(result: Result) -> list[str]:
    return [line for line in result.output.splitlines() if line.startswith("│")]


def test_show_marks_the_supervised_tokens_and_saves_the_image(tmp_path: Path) -> None:
    ids = [1, 2, 3, 3, 3, 3, 3, 4, 5]
    spans = [{"start": 1, "end": 2}, {"start": 7, "end": 9}]
    row = make_row("vqa", "train", 7, SIZE, input_ids=ids, num_tokens=9, supervised=spans)
    row |= {"prompt": "look\x1b[31m\nhere", "history": [{"user": "earlier", "assistant": "reply"}]}
    make_folder(tmp_path / "shards", {("train", "vqa"): [row]}, SIZE)
    picture = tmp_path / "picture.png"
    result = run("show", tmp_path / "shards", "medical-vqa/train-7", "--image", picture)
    assert result.exit_code == 0, result.output
    assert "w1[[w2]]w3×5 [[w4 w5]]" in result.output
    assert "supervised 1–2, 7–9" in result.output
    assert r"look\x1b[31m\nhere" in result.output
    assert "earlier" in result.output
    assert np.asarray(Image.open(picture)).tobytes() == row["image"]


def test_show_suggests_the_nearest_sample(tmp_path: Path) -> None:
    make_mixed(tmp_path, count=2, image_size=SIZE)
    result = run("show", tmp_path, "pubmedqa/trian-1")
    assert result.exit_code == 2
    assert "did you mean 'pubmedqa/train-1'?" in result.output
    result = run("show", tmp_path, "pubmedqa/train-1", "--image", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "has no image to save" in result.output


def test_verify_says_yes_or_names_what_differs(tmp_path: Path) -> None:
    make_mixed(tmp_path, count=2, image_size=SIZE)
    assert run("verify", tmp_path).exit_code == 0
    path = tmp_path / "train/vqa-00000.arrow"
    data = bytearray(path.read_bytes())
    data[data.index(make_row("vqa", "train", 1, SIZE)["image"])] ^= 1
    path.write_bytes(data)
    result = run("verify", tmp_path, "--workers", 1)
    assert result.exit_code == 1
    assert "train/vqa-00000.arrow: row 1 (medical-vqa/train-1): content does not match" in result.output


def test_module_answers_with_one_line_for_a_folder_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shards", "inspect", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {tmp_path}/nothing: no such folder")
    assert done.stderr.count("\n") == 1


def test_help_does_not_wait_for_arrow() -> None:
    code = "import sys; from shards.cli import main; main(['--help'], standalone_mode=False); "
    code += "print(sorted({'pyarrow', 'polars', 'numpy', 'webdataset', 'mindspore'} & set(sys.modules)))"
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
    assert all(name in done.stdout for name in ("inspect", "show", "verify"))
