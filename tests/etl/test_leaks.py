"""Near-duplicates stay on one side, `verify --leaks` names those that do not; others stay apart."""

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import HUB, needs_shared
from PIL import Image, ImageDraw, ImageEnhance
from raw_data import build_command, picture, run_well, vqa_row, write_medical_vqa, write_roco
from shard_factory import make_folder, make_row

from janus.images import decode_image
from shards.cli import main
from shards.duplicates import (
    BIT_BYTES,
    COLOUR,
    HASH_BYTES,
    NEAR,
    find_leaks,
    hash_keys,
    near_pairs,
    picture_hash,
    write_pictures,
)
from shards.manifest import PICTURES, load_manifest, write_manifest

BITS = 8 * BIT_BYTES
GREY = bytes([128]) * (HASH_BYTES - BIT_BYTES)


def scene(number: int, side: int = 120) -> Image.Image:
    """A picture drawn from its number: shapes with edges, as organs and bones have them."""
    rng = np.random.default_rng(number)
    image = Image.new("L", (side, side), int(rng.integers(0, 60)))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, width, height = (rng.random(4) * side * [1, 1, 0.4, 0.4]).tolist()
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x - width / 2, y - height / 2, x + width / 2, y + height / 2), fill=int(rng.integers(0, 256)))
    return image.convert("RGB")


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def copies(image: Image.Image) -> dict[str, Image.Image]:
    half = (max(image.width // 2, 1), max(image.height // 2, 1))
    return {
        "compressed": decode_image(encoded(image, "JPEG", quality=40)),
        "smaller": image.resize(half, Image.Resampling.BICUBIC),
        "brighter": ImageEnhance.Brightness(image).enhance(1.1),
        "grey": image.convert("L").convert("RGB"),
    }


def distance(one: Image.Image, other: Image.Image) -> int:
    hashes = [
        np.unpackbits(np.frombuffer((picture_hash(i) or b"")[:BIT_BYTES], np.uint8)) for i in (one, other)
    ]
    return int((hashes[0] != hashes[1]).sum())


def test_a_copy_is_near_and_another_picture_is_far() -> None:
    scenes = [scene(number) for number in range(20)]
    for image in scenes:
        assert {name: d for name, copy in copies(image).items() if (d := distance(image, copy)) > NEAR} == {}
    assert min(distance(scenes[0], other) for other in scenes[1:]) > NEAR


@needs_shared
def test_no_two_real_radiology_pictures_are_taken_for_one() -> None:
    files = sorted((HUB / "medical-vqa" / "vqa-rad" / "images").iterdir())[:120]
    images = {path.read_bytes(): path for path in files}
    hashes = [picture_hash(decode_image(data)) for data in images]
    assert None not in hashes
    assert len(near_pairs([h for h in hashes if h])) == 0


def test_the_same_shapes_in_other_colours_are_another_picture() -> None:
    bits = bytes(BIT_BYTES)
    near, far = (bytes([128 + shift]) + GREY[1:] for shift in (COLOUR, COLOUR + 1))
    assert near_pairs([bits + GREY, bits + near]).tolist() == [[0, 1]]
    assert near_pairs([bits + GREY, bits + far]).tolist() == []
    red, blue = (Image.new("RGB", (100, 100), "white") for _ in range(2))
    for image, colour in ((red, (255, 0, 0)), (blue, (60, 60, 255))):
        ImageDraw.Draw(image).ellipse((20, 20, 50, 50), fill=colour)
    hashes = [picture_hash(image) or b"" for image in (red, blue)]
    assert distance(red, blue) <= NEAR
    assert near_pairs(hashes).tolist() == []


def test_blank_pictures_have_no_hash() -> None:
    for grey in (0, 128, 255):
        blank = np.full((90, 90), grey, np.int16)
        noisy = (blank + np.random.default_rng(grey).integers(-3, 4, blank.shape)).clip(0, 255)
        for pixels in (blank, noisy):
            assert picture_hash(Image.fromarray(pixels.astype(np.uint8)).convert("RGB")) is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_near_pairs_are_exactly_those_within_the_threshold(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    bits = rng.integers(0, 2, (data.draw(st.integers(0, 12)), BITS), np.uint8)
    for _ in range(data.draw(st.integers(0, 12)) if len(bits) else 0):
        copy = bits[rng.integers(len(bits))].copy()
        copy[rng.choice(BITS, data.draw(st.integers(0, NEAR + 3)), replace=False)] ^= 1
        bits = np.vstack([bits, copy])
    hashes = list(dict.fromkeys(np.packbits(row).tobytes() + GREY for row in bits))
    flat = [int.from_bytes(value, "big") for value in hashes]
    pairs = [(i, j) for j in range(len(flat)) for i in range(j) if (flat[i] ^ flat[j]).bit_count() <= NEAR]
    assert [tuple(pair) for pair in near_pairs(hashes).tolist()] == sorted(pairs)


def test_a_chain_of_near_duplicates_is_not_one_key() -> None:
    """A ~ B ~ C: A and C share none, so an upstream test picture drives out only its own copies."""
    base = np.zeros(BITS, np.uint8)
    flips = [0, NEAR, 2 * NEAR]
    hashes = [np.packbits(np.where(np.arange(BITS) < flip, 1, base)).tobytes() + GREY for flip in flips]
    keys = {h: set(hash_keys(hashes).filter(pl.col("picture_hash") == h)["key"]) for h in hashes}
    a, b, c = (keys[h] for h in hashes)
    assert a & b
    assert b & c
    assert not a & c


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> Path:
    """40 scenes with a question each, every second one copied in another form; 12 blank pictures."""
    root = tmp_path_factory.mktemp("leaks")
    images, rows = {}, []
    for number in range(40):
        forms = {"original": scene(number)} | (copies(scene(number)) if number % 2 else {})
        for form, image in forms.items():
            images[f"{number}-{form}.png"] = encoded(image)
    for grey in range(12):
        images[f"blank-{grey}.png"] = picture((20 * grey,) * 3)
    rows = [vqa_row(name, name, f"<image>\nWhat is {name}?", "a scan") for name in images]
    write_medical_vqa(root / "data", rows, images)
    run_well(*build_command(root / "data", root, sample_data / "tokenizer", "--validation-fraction", 0.3))
    return root


def test_near_duplicates_are_built_onto_one_side(built: Path) -> None:
    rows = pl.scan_ipc(f"{built / 'shards'}/**/*.arrow").select("source_key", "split").collect()
    scenes = rows.with_columns(scene=pl.col("source_key").str.extract(r"^(\d+)-")).drop_nulls()
    assert (scenes.group_by("scene").agg(pl.col("split").n_unique())["split"] == 1).all()
    assert set(scenes["split"]) == {"train", "validation"}
    blank = rows.filter(pl.col("source_key").str.starts_with("blank"))
    assert set(blank["split"]) == {"train", "validation"}  # they have not all become one
    result = CliRunner().invoke(main, ["verify", str(built / "shards"), "--leaks"])
    assert result.exit_code == 0, result.output


def test_upstream_near_duplicates_across_splits_are_set_aside(tmp_path: Path, sample_data: Path) -> None:
    forms = copies(scene(1))
    train = {"copy": forms["compressed"], "other": scene(2), "third": scene(3)}
    for split, images in (("train", train), ("test", {"original": scene(1), "fourth": scene(4)})):
        rows = [{"image": encoded(i), "image_id": key, "caption": f"A {key}"} for key, i in images.items()]
        write_roco(tmp_path / "data", rows, split)
    run_well(*build_command(tmp_path / "data", tmp_path, sample_data / "tokenizer"))
    counts = load_manifest(tmp_path / "shards").counts["roco"]
    assert (dict(counts.rejected), counts.written) == ({"leak": 1}, 4)


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_verify_names_questions_and_files_on_two_sides(tmp_path: Path, format: str) -> None:
    history = [{"user": "is  it A SHARED question?", "assistant": "yes"}]
    train = [
        make_row("vqa", "train", 0, 8),
        make_row("vqa", "train", 1, 8, prompt="Is it a shared\n question?"),
        make_row("vqa", "train", 2, 8, image_sha256="f" * 64),
        make_row("vqa", "train", 3, 8),
    ]
    test = [make_row("vqa", "test", 0, 8, history=history, prompt="What is it now?")]
    test += [make_row("vqa", "test", 1, 8, image_sha256="f" * 64, prompt="What else is it?")]
    train = [{**row, "prompt": row["prompt"] + ("" if i == 1 else f" {i}")} for i, row in enumerate(train)]
    make_folder(tmp_path, {("train", "vqa"): train, ("test", "vqa"): test}, 8, format)
    assert CliRunner().invoke(main, ["verify", str(tmp_path)]).exit_code == 0
    result = CliRunner().invoke(main, ["verify", str(tmp_path), "--leaks"])
    assert result.exit_code == 1
    first, *lines = result.output.splitlines()
    assert "holds no hashes of its pictures" in first
    assert lines == [
        "train medical-vqa/train-1: the question is also in test medical-vqa/test-0",
        "train medical-vqa/train-2: the picture's file is also in test medical-vqa/test-1",
    ]


def test_verify_names_near_duplicate_pictures_and_an_edited_hash_file(built: Path, tmp_path: Path) -> None:
    """The built shards, their rows of validation said to be of pictures nearly the same as others."""
    folder = tmp_path / "shards"
    shutil.copytree(built / "shards", folder)
    pictures = pl.DataFrame(pl.from_arrow(pq.read_table(folder / PICTURES)))
    rows = pl.scan_ipc(f"{folder}/**/*.arrow").select("sample_id", "split", "image_sha256").collect()
    held = rows.join(pictures, on="image_sha256").filter(pl.col("picture_hash").is_not_null())
    train, other = (
        held.filter(pl.col("split") == side).sort("sample_id").row(0) for side in ("train", "validation")
    )
    near = np.unpackbits(np.frombuffer(train[3], np.uint8))  # its first bits are those of the transform
    near[:NEAR] ^= 1
    changed = pl.when(pl.col("image_sha256") == other[2]).then(pl.lit(np.packbits(near).tobytes()))
    changed = pictures.with_columns(picture_hash=changed.otherwise("picture_hash"))
    manifest = load_manifest(folder)
    sha256 = write_pictures(folder, changed.to_arrow())
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 1
    assert result.output == "pictures.parquet: sha256 differs from the manifest\n"
    preprocessing = {**manifest.preprocessing, "pictures_sha256": sha256}
    write_manifest(folder, dataclasses.replace(manifest, preprocessing=preprocessing))
    assert f"train {train[0]}: nearly the same picture is also in validation {other[0]}" in find_leaks(folder)
