"""`shards preview`, `inspect` and `show` as a user runs them: what they say, and that data cannot harm it."""

import base64
import io
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import shard_factory
from commands import refusal, run_well
from pages import Page, check_alone
from paths import ROOT
from PIL import Image
from shard_factory import (
    finish_folder,
    flip,
    hostile_folder,
    make_batch,
    make_folder,
    make_mixed,
    make_row,
    pictures_of,
)
from trainer_shards import make_model, make_trainable

from janus.common.page import picture_uri
from shards.cli import main
from shards.compare.check import seal
from shards.manifest import load_manifest, write_manifest
from shards.pictures import CODECS
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


def shown(uri: str) -> np.ndarray:
    """The pixels of a picture in the page."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_the_page_shows_samples_counts_and_rejects(tmp_path: Path, format: str) -> None:
    folder = make_mixed(tmp_path / "s", 5, SIZE, [*SOURCES], format=format)
    with_reject(folder, "image_missing", "not-there.jpg")
    output = run_well(main, "preview", folder)
    assert re.search(r"preview.html: 35 of 35 samples, 0.\d MB", output)
    page = Page(folder / "preview.html")
    check_alone(page)
    pairs = {(task, split) for task in SOURCES for split in ("train", "validation")}
    assert {(s["task"], s["split"]) for s in page.data} == pairs
    for name in (*SOURCES.values(), "image_missing", "not-there.jpg"):
        assert name in page.html
    titles = [text for tag, text in page.texts if tag == "title"]
    assert sum(int(t.split(": ")[1].split()[0]) for t in titles if t.endswith(" rows")) == 35
    assert not list(folder.glob(".tmp-*"))
    fewer = written(folder, "--samples", 15).data  # the page in the folder does not make it another one
    assert len({s["id"] for s in fewer}) == 15
    assert Counter(s["task"] for s in fewer) == dict.fromkeys(SOURCES, 3)


def test_a_conversation_is_shown_with_each_picture_at_its_message(tmp_path: Path) -> None:
    """Two pictures in one message, one in a later turn, one drawn; with their originals and without."""
    row = make_row("interleaved", "train", 0, SIZE, shown=3)
    names = [*row["pixels"]]
    row["pixels"] = {name: np.full((SIZE, SIZE, 3), 60 * n, np.uint8) for n, name in enumerate(names)}
    said = [("system", "Be brief.", []), ("user", "Compare.", names[:2]), ("assistant", "Alike.", [])]
    said += [("user", "And", []), ("user", "?", names[2:3]), ("assistant", "So:", names[3:])]
    row["messages"] = [dict(zip(("role", "text", "pictures"), one, strict=True)) for one in said]
    folder = make_folder(tmp_path, {("train", "interleaved"): [row]}, SIZE)
    places = [[], [0, 1], [], [], [2], [3]]
    for kept in (True, False):
        (sample,) = written(folder).data
        assert [(m["role"], m["text"]) for m in sample["messages"]] == [one[:2] for one in said]
        assert [m["pictures"] for m in sample["messages"]] == [*places[:-1], [3] if kept else []]
        captions = ["as the model sees it"] * 3 + ["original"] * kept
        assert [caption for caption, _ in sample["pictures"]] == captions
        for (_, uri), name in zip(sample["pictures"], names, strict=kept):
            np.testing.assert_allclose(shown(uri), row["pixels"][name], atol=3)  # the page's are lossy
        assert sample["codes"] == 576
        (folder / "pictures/generation-00000.arrow").unlink(missing_ok=True)
        seal(folder)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = written(with_reject(hostile_folder(tmp_path / "s"), HOSTILE, HOSTILE))
    plain = written(make_mixed(tmp_path / "plain", 2, SIZE))
    check_alone(page)
    for tag in ("script", "img", "style"):
        assert page.count(tag) == plain.count(tag)
    sample = next(s for s in page.data if s["id"] == HOSTILE)
    assert (sample["prompt"], sample["answer"]) == (HOSTILE, HOSTILE)
    assert [message["text"] for message in sample["messages"]] == [HOSTILE] * 4


def test_codes_are_decoded_beside_the_original_by_their_own_model_only(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    folder = make_trainable(tmp_path / "s", {"t2i": 2, "edit": 1, "text": 1}, validation=0)
    samples = written(folder, "--model", model).data
    captions = {s["task"]: [caption for caption, _ in s["pictures"]] for s in samples}
    both = ["original", "its codes, decoded"]
    assert captions == {"t2i": both, "edit": ["as the model sees it", *both], "text": []}
    (edit,) = (s for s in samples if s["task"] == "edit")
    assert [message["pictures"] for message in edit["messages"]] == [[0], [1, 2]]
    other = make_trainable(tmp_path / "other", {"t2i": 2}, vq_sha256="0" * 64)
    line = refusal(main, "preview", other, "--model", model)
    assert f"{other}: its image tokens are not those of {model}'s VQ encoder" in line
    none = make_mixed(tmp_path / "none", 1, SIZE)
    assert f"{none}: holds no image tokens" in refusal(main, "preview", none, "--model", model)


def copies(rows: list[dict], count: int) -> Iterator[pa.RecordBatch]:
    """These 500 rows, the rest copies with ids of their own."""
    made = make_batch(rows)
    for start in range(0, count, 500):
        ids = pa.array([f"made/{start + i}" for i in range(500)])
        yield made.set_column(0, made.schema.field(0), ids)


@pytest.mark.slow
def test_a_hundred_thousand_samples_make_a_small_page(tmp_path: Path) -> None:
    entries, made = [], {}
    for task, count in {"vqa": 70_000, "text": 20_000, "t2i": 10_000}.items():
        made[task] = [make_row(task, "train", key, SIZE) for key in range(500)]
        entries += write_shards(copies(made[task], count), tmp_path, split="train", task=task)
    finish_folder(tmp_path, entries, SIZE, pictures=pictures_of(chain(*made.values()), tmp_path))
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


def test_all_pictures_of_a_sample_share_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.preview.gallery.PICTURE_BYTES", 100_000)
    rows = [make_row("interleaved", "train", key, 48, shown=8, drawn=2) for key in range(5)]
    samples = written(make_folder(tmp_path, {("train", "interleaved"): rows}, 48)).data
    sizes = [len(base64.b64decode(uri.split(",")[1])) for s in samples for _, uri in s["pictures"]]
    assert len(sizes) == 50
    assert 50_000 < sum(sizes) <= 100_000


def test_a_page_that_would_be_too_large_is_not_left_behind(tmp_path: Path) -> None:
    said = [{"role": role, "text": "<" * 600, "pictures": []} for role in ("user", "assistant")] * 4
    rows = [make_row("text", "train", key, messages=said) for key in range(1200)]
    line = refusal(main, "preview", make_folder(tmp_path, {("train", "text"): rows}), "--samples", 1200)
    assert re.search(r"would be \d+\.\d MB, more than 20; give fewer --samples", line)
    assert not (tmp_path / "preview.html").exists()


def test_a_damaged_row_and_a_place_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    folder = make_mixed(tmp_path / "s", 2, SIZE)
    (tmp_path / "file").touch()
    line = refusal(main, "preview", folder, "--out", tmp_path / "file" / "page.html")
    assert "page.html: cannot be written (File exists); choose another place (--out)" in line
    (pixels,) = make_row("vqa", "train", 1, SIZE)["pixels"].values()
    damaged = flip(folder / "pictures/understanding-00000.arrow", CODECS["webp"].encode(pixels))
    assert f"{damaged}: picture 1 (" in refusal(main, "preview", folder)
    flip(folder / "train/vqa-00000.arrow", b"answer 1")
    assert "row 1 (medical-vqa/train-1): content" in refusal(main, "preview", folder)


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_inspect_counts_rows_tokens_and_rejects(tmp_path: Path, format: str) -> None:
    span, lengths = {"start": 4, "end": 9, "kind": 0}, (10, 20, 30, 40)
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


def test_page_and_show_mark_the_supervised_tokens_and_the_images_are_saved(tmp_path: Path) -> None:
    ids, spans = [1, 2, 3, 3, 3, 3, 3, 4, 5], [(1, 2, 1), (7, 9, 0)]
    supervised = [dict(zip(("start", "end", "kind"), values, strict=True)) for values in spans]
    row = make_row("edit", "train", 7, SIZE, shown=3, input_ids=ids, num_tokens=9, supervised=supervised)
    names = [*row["pixels"]]
    said = [("user", "earlier", names[:2]), ("assistant", "reply", [])]
    said += [("user", "look\x1b[31m\nhere", names[2:3]), ("assistant", "", names[3:])]
    row["messages"] = [dict(zip(("role", "text", "pictures"), one, strict=True)) for one in said]
    folder, picture = make_folder(tmp_path / "shards", {("train", "edit"): [row]}, SIZE), tmp_path / "x.png"
    (sample,) = written(folder).data
    assert sample["pieces"] == [["w1", False], ["w2", True], ["w3×5 ", False], ["w4 w5", True]]
    assert (sample["tokens"], sample["supervised"]) == (9, 3)
    output = run_well(main, "show", folder, "edits/train-7", "--image", picture)
    parts = ("w1[[w2]]w3×5 [[w4 w5]]", "supervised 1–2, 7–9", r"look\x1b[31m\nhere", "576 codes")
    assert [part for part in parts if part not in output] == []
    colours = [row["pixels"][name].mean((0, 1)).round().astype(int).tolist() for name in names[:3]]
    asked = [f"[picture {n}, mean colour {c}]" for n, c in zip(names, colours, strict=False)]
    places = [("user", one) for one in (*asked[:2], "earlier")] + [("assistant", "reply")]
    places += [
        ("user", asked[2]),
        ("user", r"look\x1b[31m\nhere"),
        ("assistant", f"[picture {names[3]}, drawn]"),
    ]
    lines = [line.split(maxsplit=1) for line in output.splitlines()]
    assert [tuple(line) for line in lines if line[0] in ("user", "assistant")] == places
    side_by_side = np.concatenate([row["pixels"][name] for name in names[:3]], 1)
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), side_by_side)


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
