"""`shards preview` as a user runs it: what the page says, how large it is, and that data cannot harm it."""

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from pages import Page, check_alone
from PIL import Image
from shard_factory import (
    HOSTILE,
    SOURCES,
    finish_folder,
    hostile_folder,
    make_batch,
    make_folder,
    make_mixed,
    make_row,
)
from trainer_shards import make_model, make_trainable

from janus.common.files import hash_file
from janus.common.page import picture_uri
from shards.cli import main
from shards.manifest import load_manifest, write_manifest
from shards.preview.gallery import allot, choose
from shards.preview.page import histogram
from shards.write import write_shards

SIZE = 8


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["preview", *[str(arg) for arg in args]])


def with_reject(folder: Path, reason: str, detail: str) -> Path:
    """The folder with one reject and its example in the manifest."""
    manifest = load_manifest(folder)
    ((source, counts),) = manifest.counts.items()
    rejected = {source: replace(counts, rejected={reason: 1})}
    example = {"source": source, "reason": reason, "source_key": detail, "detail": detail, "stage": "ingest"}
    write_manifest(folder, replace(manifest, counts=rejected, recipe={"reject_examples": [example]}))
    return folder


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_the_page_shows_samples_counts_and_rejects(tmp_path: Path, format: str) -> None:
    folder = with_reject(make_mixed(tmp_path / "s", 5, SIZE, format=format), "image_missing", "not-there.jpg")
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert re.search(r"preview.html: 21 of 21 samples, 0.\d MB", result.output)
    page = Page(folder / "preview.html")
    check_alone(page)
    assert {(s["task"], s["split"]) for s in page.data} == {
        (task, split) for task in SOURCES for split in ("train", "validation")
    }
    for name in (*SOURCES.values(), "image_missing", "not-there.jpg"):
        assert name in page.html
    titles = [text for tag, text in page.texts if tag == "title"]
    assert sum(int(t.split(": ")[1].split()[0]) for t in titles if t.endswith(" rows")) == 21
    vqa = next(s for s in page.data if s["task"] == "vqa")
    (name, uri), *rest = vqa["pictures"]
    assert (name, rest) == ("as the model sees it", [])
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert shown.shape == (SIZE, SIZE, 3)
    assert not list(folder.glob(".tmp-*"))
    assert run(folder).exit_code == 0  # the page in the folder does not make it another one


def test_the_marked_pieces_are_the_supervised_tokens(tmp_path: Path) -> None:
    ids, spans = [1, 2, 3, 3, 3, 3, 3, 4, 5], [{"start": 1, "end": 2}, {"start": 7, "end": 9}]
    row = make_row("vqa", "train", 7, SIZE, input_ids=ids, num_tokens=9, supervised=spans)
    make_folder(tmp_path, {("train", "vqa"): [row]}, SIZE)
    assert run(tmp_path).exit_code == 0
    (sample,) = Page(tmp_path / "preview.html").data
    assert sample["pieces"] == [["w1", False], ["w2", True], ["w3×5 ", False], ["w4 w5", True]]
    assert (sample["tokens"], sample["supervised"]) == (9, 3)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder = with_reject(hostile_folder(tmp_path / "s"), HOSTILE, HOSTILE)
    make_mixed(tmp_path / "plain", 2, SIZE)
    assert run(folder).exit_code == 0
    assert run(tmp_path / "plain").exit_code == 0
    page, plain = Page(folder / "preview.html"), Page(tmp_path / "plain" / "preview.html")
    check_alone(page)
    for tag in ("script", "img", "style"):
        assert page.count(tag) == plain.count(tag)
    sample = next(s for s in page.data if s["id"] == HOSTILE)
    assert (sample["prompt"], sample["answer"], sample["history"]) == (HOSTILE, HOSTILE, [[HOSTILE, HOSTILE]])


def test_codes_are_decoded_beside_the_original_by_their_own_model_only(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    folder = make_trainable(tmp_path / "s", {"t2i": 2, "text": 1}, validation=0)
    result = run(folder, "--model", model)
    assert result.exit_code == 0, result.output
    samples = Page(folder / "preview.html").data
    captions = [[caption for caption, _ in s["pictures"]] for s in samples if s["task"] == "t2i"]
    assert captions == [["original", "its codes, decoded"]] * 2
    other = make_trainable(tmp_path / "other", {"t2i": 2}, vq_sha256="0" * 64)
    result = run(other, "--model", model)
    assert result.exit_code == 2
    assert f"{other}: its image tokens are not those of {model}'s VQ encoder" in result.output
    result = run(make_mixed(tmp_path / "none", 1, SIZE), "--model", model)
    assert result.exit_code == 2
    assert f"{tmp_path / 'none'}: holds no image tokens" in result.output


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
    result = run(tmp_path, "--samples", 300)
    assert result.exit_code == 0, result.output
    assert "300 of 100,000 samples" in result.output
    page = tmp_path / "preview.html"
    assert page.stat().st_size < 5e6
    samples = pl.DataFrame([{"task": s["task"]} for s in Page(page).data])
    assert dict(samples.group_by("task").len().iter_rows()) == {"vqa": 100, "text": 100, "t2i": 100}
    assert "70,000" in page.read_text(encoding="utf-8")
    first = hash_file(page)
    assert run(tmp_path, "--samples", 300).exit_code == 0
    assert hash_file(page) == first


def test_pictures_that_do_not_compress_share_the_page() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (384, 384, 3), np.uint8)
    for limit in (150_000, 30_000, 6_000):
        content = base64.b64decode(picture_uri(noise, limit).split(",")[1])
        assert len(content) <= limit
        assert Image.open(io.BytesIO(content)).format == "WEBP"


def test_a_page_that_would_be_too_large_is_not_left_behind(tmp_path: Path) -> None:
    turns = [{"user": "<" * 600, "assistant": "<" * 600}] * 4
    rows = [make_row("text", "train", key, history=turns) for key in range(1200)]
    make_folder(tmp_path, {("train", "text"): rows})
    result = run(tmp_path, "--samples", 1200)
    assert result.exit_code == 2
    assert re.search(r"would be \d+\.\d MB, more than 20; give fewer --samples", result.output)
    assert not (tmp_path / "preview.html").exists()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 200))
def test_shares_are_even_and_complete(sizes: list[int], total: int) -> None:
    shares = allot(sizes, total)
    assert sum(shares) == min(total, sum(sizes))
    cut = [share for share, size in zip(shares, sizes, strict=True) if share < size]
    assert all(share <= size for share, size in zip(shares, sizes, strict=True))
    assert not cut or max(shares) <= min(cut) + 1


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_every_row_is_in_one_bin(lengths: list[int]) -> None:
    bars = histogram(np.array(lengths), min(lengths), max(lengths))
    assert sum(bar["rows"] for bar in bars) == len(lengths)
    assert len(bars) <= 32
    for bar in bars:
        assert bar["rows"] == sum(bar["lo"] <= length <= bar["hi"] for length in lengths)


def test_the_choice_is_of_the_rows_and_has_no_repeats() -> None:
    rows = pl.DataFrame({"source": ["a"] * 20 + ["b"] * 10, "index": [*range(30)]})
    chosen = choose(rows.with_columns(task=pl.lit("vqa"), split=pl.lit("train")), 12)
    assert chosen["index"].n_unique() == 12
    assert dict(chosen.group_by("source").len().iter_rows()) == {"a": 6, "b": 6}
    assert chosen["source"].to_list()[:4] == ["a", "b", "a", "b"]


def test_a_damaged_row_and_a_place_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    make_mixed(tmp_path / "s", 2, SIZE)
    (tmp_path / "file").touch()
    result = run(tmp_path / "s", "--out", tmp_path / "file" / "page.html")
    assert result.exit_code == 2
    assert "page.html: cannot be written (File exists); choose another place (--out)" in result.output
    path = tmp_path / "s/train/vqa-00000.arrow"
    content = bytearray(path.read_bytes())
    content[content.index(make_row("vqa", "train", 1, SIZE)["image"])] ^= 1
    path.write_bytes(content)
    result = run(tmp_path / "s")
    assert result.exit_code == 2
    assert "row 1 (medical-vqa/train-1): content" in result.output
