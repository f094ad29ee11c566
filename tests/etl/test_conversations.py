"""Conversations with pictures anywhere, from a file to shards: exact ids, spans, pixels and codes."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from layouts import laid_out
from PIL import Image
from raw_data import build_command, run_well
from test_forms import messages, write_lines
from trainer_shards import SIDE, TOKENS, make_model

from janus.checkpoint.folder import open_model
from janus.generate.pictures import vq_encoder
from janus.images import ImagePreparation, decode_image, prepare_generation, prepare_understanding
from janus.tokens import JanusTokenizer
from pipelines.tables import read_table
from shards.compare.check import verify_folder
from shards.pictures import DRAWN, UNDERSTOOD
from shards.read import ShardSet
from shards.schema import Sample

SIZES = {"a.png": (SIDE, SIDE), "b.png": (40, 30), "c.png": (SIDE, SIDE), "d.png": (30, 50)}
PREPARATION = ImagePreparation(SIDE)
END = "\n\n<|Assistant|>:"

ROWS: dict[str, tuple[str, list[str], list[str], str]] = {
    "two at once": ("vqa", ["<image><image>\nCompare.", "Alike."], ["a.png", "b.png"],
        "{system}<|User|>: <img>\n\n<img>\nCompare." + END + "[[ Alike.<eos>]]"),
    "one twice": ("vqa", ["<image><image>\nThe same?", "Yes."], ["b.png", "b.png"],
        "{system}<|User|>: <img>\n\n<img>\nThe same?" + END + "[[ Yes.<eos>]]"),
    "between texts": ("vqa", ["Is <image> like <image>?", "No."], ["b.png", "c.png"],
        "{system}<|User|>: Is\n<img>\nlike\n<img>\n?" + END + "[[ No.<eos>]]"),
    "earlier turn": ("vqa", ["<image>One?", "1", "Two?", "2"], ["a.png"],
        "{system}<|User|>: <img>\nOne?" + END + "[[ 1<eos>]]<|User|>: Two?" + END + "[[ 2<eos>]]"),
    "later turn": ("vqa", ["Three?", "3", "And <image>", "4"], ["d.png"],
        "{system}<|User|>: Three?" + END + "[[ 3<eos>]]<|User|>: And\n<img>" + END + "[[ 4<eos>]]"),
    "edit": ("edit", ["Make it blue.<image>", "<image>"], ["a.png", "b.png"],
        "<|User|>: <img>\nMake it blue." + END + "<draw>"),
    "edit of two": ("edit", ["<image><image>Join them.", "<image>"], ["c.png", "b.png", "d.png"],
        "<|User|>: <img>\n\n<img>\nJoin them." + END + "<draw>"),
    "interleaved": ("interleaved", ["<image>Draw.", "One: <image> two: <image>"], ["d.png", "c.png", "a.png"],
        "{system}<|User|>: <img>\nDraw." + END + "[[ One:\n]]<draw>[[\ntwo:\n]]<draw>[[<eos>]]"),
    "drawn earlier": ("interleaved", ["A cat.", "<image>", "What is it?", "A cat."], ["c.png"],
        "{system}<|User|>: A cat." + END + "<draw><eos><|User|>: What is it?" + END + "[[ A cat.<eos>]]"),
    "two drawn": ("t2i", ["Two dogs.", "<image><image>"], ["b.png", "c.png"],
        "<|User|>: Two dogs." + END + "<draw>\n\n<draw>"),
}  # fmt: skip
"""Task, turns, pictures and layout of each row, the last by hand."""


def gradient(size: tuple[int, int], seed: int) -> bytes:
    """A picture that is like no other."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC).save(data, "PNG")
    return data.getvalue()


PICTURES = {name: gradient(size, seed) for seed, (name, size) in enumerate(SIZES.items())}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's, for pictures of the small model's size."""
    folder = Path(shutil.copytree(sample_data / "tokenizer", tmp_path_factory.mktemp("conversations") / "t"))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_size": SIDE}))
    return folder


Build = Callable[..., ShardSet]


@pytest.fixture
def build(model: Path, tokenizer: Path, tmp_path: Path) -> Build:
    """Builds ROWS, and others, with these options; all the shards hold."""
    data = tmp_path / "data"
    data.mkdir()
    for name, content in PICTURES.items():
        (data / name).write_bytes(content)
    rows = [{"id": k, "messages": messages(*turns), "images": p} for k, (_, turns, p, _) in ROWS.items()]

    def run(*options: object, more: tuple = ()) -> ShardSet:
        write_lines(data / "rows.jsonl", *rows, *more)
        run_well(*build_command(data, tmp_path, tokenizer, "--model", model, "--workers", 1, *options))
        assert verify_folder(tmp_path / "shards") == []
        return ShardSet.open(tmp_path / "shards")

    return run


def samples_of(shards: ShardSet) -> dict[str, Sample]:
    read = (shards.rows(*pair) for pair in shards.splits_tasks())
    return {sample.source_key: sample for rows in read for sample in map(rows.read, range(len(rows)))}


def sha256(name: str) -> str:
    return hashlib.sha256(PICTURES[name]).hexdigest()


def prepared(name: str, prepare: Callable = prepare_understanding) -> np.ndarray:
    return prepare(decode_image(PICTURES[name]), PREPARATION)


@pytest.mark.parametrize(("format", "pixels"), [("arrow", "webp"), ("webdataset", "webp"), ("arrow", "raw")])
def test_ids_spans_pixels_and_codes_are_those_of_the_conversation(
    build: Build, model: Path, tokenizer: Path, format: str, pixels: str
) -> None:
    shards, known = build("--format", format, "--pixels", pixels), JanusTokenizer(tokenizer)
    samples, encode = samples_of(shards), vq_encoder(open_model(str(model)))
    codes = {name: encode(prepared(name, prepare_generation)).tolist() for name in PICTURES}
    assert len({tuple(some) for some in codes.values()}) == len(PICTURES)
    assert samples.keys() == ROWS.keys()
    for key, (task, _, pictures, layout) in ROWS.items():
        sample = samples[key]
        assert sample.task == task
        ids, spans = laid_out(layout, known, TOKENS)
        assert (sample.input_ids.tolist(), sample.supervised.tolist()) == (ids, spans), key
        shown, drawn = pictures[: layout.count("<img>")], pictures[layout.count("<img>") :]
        assert (sample.understood, sample.drawn) == ([*map(sha256, shown)], [*map(sha256, drawn)]), key
        np.testing.assert_equal([*sample.images], [prepared(name) for name in shown], err_msg=key)
        assert sample.image_tokens.tolist() == [code for name in drawn for code in codes[name]], key
    held = {entry.path.partition("-")[0]: entry.pictures for entry in shards.manifest.pictures}
    assert held == {f"pictures/{UNDERSTOOD}": 4}  # each once; originals of drawn ones are not kept
    assert shards.manifest.counts["rows"].written == len(ROWS)


def test_the_same_rows_and_pictures_whatever_format_and_codec(build: Build) -> None:
    first, *others = (
        samples_of(build("--format", format, "--pixels", pixels))
        for format in ("arrow", "webdataset")
        for pixels in ("webp", "raw")
    )
    for other in others:
        for key, sample in first.items():
            np.testing.assert_equal(vars(other[key]), vars(sample), err_msg=key)


def test_pictures_begin_by_themselves_where_that_is_trained(build: Build, tokenizer: Path) -> None:
    samples, known = samples_of(build("--train-begin")), JanusTokenizer(tokenizer)
    for key, (task, _, _, layout) in ROWS.items():
        layout = layout.replace("<draw>", "<begin-draw>") if task == "interleaved" else layout
        ids, spans = laid_out(layout, known, TOKENS)
        assert (samples[key].input_ids.tolist(), samples[key].supervised.tolist()) == (ids, spans), key


def test_originals_of_drawn_pictures_are_kept_where_that_is_asked_for(build: Build) -> None:
    shards = build("--keep-images", "--format", "webdataset")
    drawn = {name for _, _, pictures, layout in ROWS.values() for name in pictures[layout.count("<img>") :]}
    assert drawn == {"a.png", "b.png", "c.png", "d.png"}
    for name in drawn:
        (image,) = shards.pictures[DRAWN].read([sha256(name)])
        np.testing.assert_array_equal(image, prepared(name, prepare_generation))


BAD = {
    "second shown": ("<image><image>Compare.", "Alike.", ["a.png", "bad.png"]),
    "drawn": ("Draw.", "<image>", ["bad.png"]),
    "second drawn": ("<image>Blue.", "One: <image> <image>", ["a.png", "c.png", "bad.png"]),
}


def test_a_row_with_one_bad_picture_is_rejected_and_its_others_serve_other_rows(
    build: Build, tmp_path: Path
) -> None:
    (tmp_path / "data" / "bad.png").write_bytes(PICTURES["a.png"][:60])
    more = [{"id": k, "messages": messages(*turns), "images": names} for k, (*turns, names) in BAD.items()]
    shards = build("--max-reject-rate", 1, more=more)
    assert samples_of(shards).keys() == ROWS.keys()
    assert {(key, reason) for key, (_, reason, _) in rejects_of(tmp_path / "work").items()} == {
        (key, "image_unreadable") for key in BAD
    }
    assert all(sha256(name) in shards.pictures[UNDERSTOOD] for name in PICTURES)


def rejects_of(work: Path) -> dict[str, tuple[str, str, str]]:
    rows = read_table(work / "rejects.arrow").to_pylist()
    return {row["source_key"]: (row["stage"], row["reason"], row["detail"]) for row in rows}


def test_drawn_pictures_of_another_size_are_rejected_where_that_is_asked_for(
    build: Build, tmp_path: Path
) -> None:
    """Those that are read may have any."""
    samples = samples_of(build("--strict-size", "--max-reject-rate", 1))
    wrong = {"edit": "40×30", "edit of two": "30×50", "two drawn": "40×30"}
    assert rejects_of(tmp_path / "work") == {
        key: ("images", "wrong_size", f"{size} pixels") for key, size in wrong.items()
    }
    assert samples.keys() == ROWS.keys() - wrong


def test_a_sample_too_long_for_its_pictures_says_how_many_it_has(build: Build, tmp_path: Path) -> None:
    samples = samples_of(build("--max-length", 80, "--max-reject-rate", 1))
    rejects = rejects_of(tmp_path / "work")
    assert samples.keys() | rejects.keys() == ROWS.keys()
    for key, (stage, reason, detail) in rejects.items():
        assert (stage, reason) == ("tokenize", "too_long")
        assert detail.endswith(f" tokens with {len(ROWS[key][2])} pictures, limit 80")
    assert "edit of two" in samples
