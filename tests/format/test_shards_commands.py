"""`shards preview`, `inspect` and `show` as a user runs them: what they say, and that data cannot harm it."""

import base64
import io
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import shard_factory
from commands import refusal, run_well
from pages import Page, check_alone
from paths import ROOT
from PIL import Image
from shard_factory import finish_folder, flip, hostile_folder, make_batch, make_folder, make_mixed, make_row
from trainer_shards import make_model, make_trainable

from janus.common.page import picture_uri
from shards.cli import main
from shards.manifest import load_manifest, write_manifest
from shards.write import write_shards

HOSTILE, SOURCES, SIZE = shard_factory.HOSTILE, shard_factory.SOURCES, 8


def written(folder: Path, *args: object) -> Page:
    run_well(main, "preview", folder, *args)
    return Page(folder / "preview.html")


def with_reject(folder: Path, reason: str, detail: str) -> Path:
    manifest = load_manifest(folder)
    ((source, counts),) = manifest.counts.items()
    rejected = {source: replace(counts, rejected={reason: 1})}
    example = {"source": source, "reason": reason, "source_key": detail, "detail": detail, "stage": "ingest"}
    write_manifest(folder, replace(manifest, counts=rejected, recipe={"reject_examples": [example]}))
    return folder


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_the_page_shows_samples_counts_and_rejects(tmp_path: Path, format: str) -> None:
    folder = with_reject(make_mixed(tmp_path / "s", 5, SIZE, format=format), "image_missing", "not-there.jpg")
    output = run_well(main, "preview", folder)
    assert re.search(r"preview.html: 21 of 21 samples, 0.\d MB", output)
    page = Page(folder / "preview.html")
    check_alone(page)
    pairs = {(task, split) for task in SOURCES for split in ("train", "validation")}
    assert {(s["task"], s["split"]) for s in page.data} == pairs
    for name in (*SOURCES.values(), "image_missing", "not-there.jpg"):
        assert name in page.html
    titles = [text for tag, text in page.texts if tag == "title"]
    assert sum(int(t.split(": ")[1].split()[0]) for t in titles if t.endswith(" rows")) == 21
    ((name, uri),) = next(s["pictures"] for s in page.data if s["task"] == "vqa")
    assert name == "as the model sees it"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert shown.shape == (SIZE, SIZE, 3)
    assert not list(folder.glob(".tmp-*"))
    fewer = written(folder, "--samples", 9).data  # the page in the folder does not make it another one
    assert len({s["id"] for s in fewer}) == 9
    assert Counter(s["task"] for s in fewer) == dict.fromkeys(SOURCES, 3)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = written(with_reject(hostile_folder(tmp_path / "s"), HOSTILE, HOSTILE))
    plain = written(make_mixed(tmp_path / "plain", 2, SIZE))
    check_alone(page)
    for tag in ("script", "img", "style"):
        assert page.count(tag) == plain.count(tag)
    sample = next(s for s in page.data if s["id"] == HOSTILE)
    assert (sample["prompt"], sample["answer"], sample["history"]) == (HOSTILE, HOSTILE, [[HOSTILE, HOSTILE]])


def test_codes_are_decoded_beside_the_original_by_their_own_model_only(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    folder = make_trainable(tmp_path / "s", {"t2i": 2, "text": 1}, validation=0)
    samples = written(folder, "--model", model).data
    captions = [[caption for caption, _ in s["pictures"]] for s in samples if s["task"] == "t2i"]
    assert captions == [["original", "its codes, decoded"]] * 2
    other = make_trainable(tmp_path / "other", {"t2i": 2}, vq_sha256="0" * 64)
    line = refusal(main, "preview", other, "--model", model)
    assert f"{other}: its image tokens are not those of {model}'s VQ encoder" in line
    none = make_mixed(tmp_path / "none", 1, SIZE)
    assert f"{none}: holds no image tokens" in refusal(main, "preview", none, "--model", model)


def copies(task: str, count: int) -> Iterator[pa.RecordBatch]:
    """Rows of a task: 500 made, the rest copies with ids of their own."""
    made = make_batch([make_row(task, "train", key, SIZE) for key in range(500)])
    for start in range(0, count, 500):
        ids = pa.array([f"made/{start + i}" for i in range(500)])
        yield made.set_column(0, made.schema.field(0), ids)


@pytest.mark.slow
def test_a_hundred_thousand_samples_make_a_small_page(tmp_path: Path) -> None:
    entries = []
    for task, count in {"vqa": 70_000, "text": 20_000, "t2i": 10_000}.items():
        entries += write_shards(copies(task, count), tmp_path, split="train", task=task, image_size=SIZE)
    finish_folder(tmp_path, entries, SIZE)
    assert "300 of 100,000 samples" in run_well(main, "preview", tmp_path, "--samples", 300)
    path = tmp_path / "preview.html"
    assert path.stat().st_size < 5e6
    page = Page(path)
    assert Counter(s["task"] for s in page.data) == {"vqa": 100, "text": 100, "t2i": 100}
    assert "70,000" in page.html
    assert written(tmp_path, "--samples", 300).html == page.html


def test_pictures_that_do_not_compress_share_the_page() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (384, 384, 3), np.uint8)
    for limit in (150_000, 30_000, 6_000):
        content = base64.b64decode(picture_uri(noise, limit).split(",")[1])
        assert len(content) <= limit
        assert Image.open(io.BytesIO(content)).format == "WEBP"


def test_a_page_that_would_be_too_large_is_not_left_behind(tmp_path: Path) -> None:
    turns = [{"user": "<" * 600, "assistant": "<" * 600}] * 4
    rows = [make_row("text", "train", key, history=turns) for key in range(1200)]
    line = refusal(main, "preview", make_folder(tmp_path, {("train", "text"): rows}), "--samples", 1200)
    assert re.search(r"would be \d+\.\d MB, more than 20; give fewer --samples", line)
    assert not (tmp_path / "preview.html").exists()


def test_a_damaged_row_and_a_place_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    folder = make_mixed(tmp_path / "s", 2, SIZE)
    (tmp_path / "file").touch()
    line = refusal(main, "preview", folder, "--out", tmp_path / "file" / "page.html")
    assert "page.html: cannot be written (File exists); choose another place (--out)" in line
    flip(folder / "train/vqa-00000.arrow", make_row("vqa", "train", 1, SIZE)["image"])
    assert "row 1 (medical-vqa/train-1): content" in refusal(main, "preview", folder)


SIZE = 8


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_inspect_counts_rows_tokens_and_rejects(tmp_path: Path, format: str) -> None:
    span, lengths = {"start": 4, "end": 9}, (10, 20, 30, 40)
    rows = [make_row("text", "train", n, input_ids=[1] * n, num_tokens=n, supervised=[span]) for n in lengths]
    validation = [make_row("vqa", "validation", 0, SIZE)]
    make_folder(tmp_path, {("train", "text"): rows, ("validation", "vqa"): validation}, SIZE, format)
    output = run_well(main, "inspect", tmp_path, "--length", 50)
    table = [line.split("│")[1:-1] for line in output.splitlines() if line.startswith("│")]
    cells = {first.strip(): [cell.strip() for cell in others] for first, *others in table}
    source, *numbers, size = cells["text"]
    assert source == "pubmedqa"
    assert numbers == ["4", "0", "0", "10", "25", "40", "40", "50.0%", "20"]
    assert int(size.replace(",", "")) > 4 * sum(lengths)
    assert cells["vqa"][:4] == ["medical-vqa", "0", "1", "0"]
    assert "rejected: image missing │ 1" in output


def test_page_and_show_mark_the_supervised_tokens_and_the_image_is_saved(tmp_path: Path) -> None:
    ids, spans = [1, 2, 3, 3, 3, 3, 3, 4, 5], [{"start": 1, "end": 2}, {"start": 7, "end": 9}]
    row = make_row("vqa", "train", 7, SIZE, input_ids=ids, num_tokens=9, supervised=spans)
    row |= {"prompt": "look\x1b[31m\nhere", "history": [{"user": "earlier", "assistant": "reply"}]}
    folder, picture = make_folder(tmp_path / "shards", {("train", "vqa"): [row]}, SIZE), tmp_path / "x.png"
    (sample,) = written(folder).data
    assert sample["pieces"] == [["w1", False], ["w2", True], ["w3×5 ", False], ["w4 w5", True]]
    assert (sample["tokens"], sample["supervised"]) == (9, 3)
    output = run_well(main, "show", folder, "medical-vqa/train-7", "--image", picture)
    shown = ("w1[[w2]]w3×5 [[w4 w5]]", "supervised 1–2, 7–9", r"look\x1b[31m\nhere", "earlier")
    assert [part for part in shown if part not in output] == []
    assert np.asarray(Image.open(picture)).tobytes() == row["image"]


def test_show_suggests_the_nearest_sample(tmp_path: Path) -> None:
    make_mixed(tmp_path, count=2, image_size=SIZE)
    assert "did you mean 'pubmedqa/train-1'?" in refusal(main, "show", tmp_path, "pubmedqa/trian-1")
    line = refusal(main, "show", tmp_path, "pubmedqa/train-1", "--image", tmp_path / "x.png")
    assert "has no image to save" in line


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_module_answers_with_one_line_and_help_does_not_wait_for_arrow(tmp_path: Path) -> None:
    done = python("-m", "shards", "inspect", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {tmp_path}/nothing: no such folder")
    assert done.stderr.count("\n") == 1
    code = "import sys; from shards.cli import main; main(['--help'], standalone_mode=False); "
    code += "print(sorted({'pyarrow', 'polars', 'numpy', 'webdataset', 'mindspore'} & set(sys.modules)))"
    done = python("-c", code)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
    assert all(name in done.stdout for name in ("inspect", "show", "verify"))
