"""Near-duplicates stay on one side, `verify --leaks` names those that do not; others stay apart."""

import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

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
from shards.compare import duplicates
from shards.compare.duplicates import BIT_BYTES, COLOUR, HASH_BYTES, NEAR, hash_keys, near_pairs, picture_hash
from shards.manifest import HASHES, load_manifest, write_manifest

BITS = 8 * BIT_BYTES
GREY = bytes([128]) * (HASH_BYTES - BIT_BYTES)


def scene(number: int, side: int = 120) -> Image.Image:
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
    bits = [int.from_bytes((picture_hash(image) or b"")[:BIT_BYTES], "big") for image in (one, other)]
    return (bits[0] ^ bits[1]).bit_count()


def test_a_copy_is_near_and_another_picture_is_far() -> None:
    scenes = [scene(number) for number in range(20)]
    for image in scenes:
        assert {name: d for name, copy in copies(image).items() if (d := distance(image, copy)) > NEAR} == {}
    assert min(distance(scenes[0], other) for other in scenes[1:]) > NEAR


@needs_shared
def test_no_two_real_radiology_pictures_are_taken_for_one() -> None:
    files = sorted((HUB / "medical-vqa" / "vqa-rad" / "images").iterdir())[:120]
    hashes = [picture_hash(decode_image(data)) for data in {path.read_bytes() for path in files}]
    assert None not in hashes
    assert len(near_pairs(hashes)) == 0


def test_the_same_shapes_in_other_colours_are_another_picture_and_blank_ones_none() -> None:
    bits = bytes(BIT_BYTES)
    near, far = (bytes([128 + shift]) + GREY[1:] for shift in (COLOUR, COLOUR + 1))
    assert near_pairs([bits + GREY, bits + near]).tolist() == [[0, 1]]
    assert near_pairs([bits + GREY, bits + far]).tolist() == []
    red, blue = (Image.new("RGB", (100, 100), "white") for _ in range(2))
    for image, colour in ((red, (255, 0, 0)), (blue, (60, 60, 255))):
        ImageDraw.Draw(image).ellipse((20, 20, 50, 50), fill=colour)
    assert distance(red, blue) <= NEAR
    assert near_pairs([picture_hash(image) or b"" for image in (red, blue)]).tolist() == []
    for grey in (0, 128, 255):
        noise = np.random.default_rng(grey).integers(-3, 4, (90, 90))
        for pixels in (np.full((90, 90), grey), (grey + noise).clip(0, 255)):
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
    hashes = [np.packbits(np.arange(BITS) < flips).tobytes() + GREY for flips in (0, NEAR, 2 * NEAR)]
    keys = hash_keys(hashes)
    a, b, c = (set(keys.filter(pl.col("picture_hash") == h)["key"]) for h in hashes)
    assert a & b
    assert b & c
    assert not a & c


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> Path:
    """40 scenes with a question each, every second one copied in another form; 12 blank pictures."""
    root = tmp_path_factory.mktemp("leaks")
    images = {f"blank-{grey}.png": picture((20 * grey,) * 3) for grey in range(12)}
    for number in range(40):
        forms = {"original": scene(number)} | (copies(scene(number)) if number % 2 else {})
        images |= {f"{number}-{form}.png": encoded(image) for form, image in forms.items()}
    rows = [vqa_row(name, name, f"<image>\nWhat is {name}?", "a scan") for name in images]
    write_medical_vqa(root / "data", rows, images)
    run_well(*build_command(root / "data", root, sample_data / "tokenizer", "--validation-fraction", 0.3))
    return root


def verify(folder: Path, *options: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(main, ["verify", str(folder), *options])
    return result.exit_code, result.output.splitlines()


def test_near_duplicates_are_built_onto_one_side(built: Path) -> None:
    rows = pl.scan_ipc(f"{built / 'shards'}/*/vqa-*.arrow").select("source_key", "split").collect()
    scenes = rows.with_columns(scene=pl.col("source_key").str.extract(r"^(\d+)-")).drop_nulls()
    assert (scenes.group_by("scene").agg(pl.col("split").n_unique())["split"] == 1).all()
    assert set(scenes["split"]) == {"train", "validation"}
    blank = rows.filter(pl.col("source_key").str.starts_with("blank"))
    assert set(blank["split"]) == {"train", "validation"}  # they have not all become one
    assert verify(built / "shards", "--leaks")[0] == 0


def test_upstream_near_duplicates_across_splits_are_rejected(tmp_path: Path, sample_data: Path) -> None:
    train = {"copy": copies(scene(1))["compressed"], "other": scene(2), "third": scene(3)}
    for split, images in (("train", train), ("test", {"original": scene(1), "fourth": scene(4)})):
        rows = [{"image": encoded(i), "image_id": key, "caption": f"A {key}"} for key, i in images.items()]
        write_roco(tmp_path / "data", rows, split)
    run_well(*build_command(tmp_path / "data", tmp_path, sample_data / "tokenizer"))
    counts = load_manifest(tmp_path / "shards").counts["roco"]
    assert (dict(counts.rejected), counts.written) == ({"leak": 1}, 4)


def asked(*turns: object, answer: str = "yes") -> dict[str, Any]:
    """A conversation: questions, and the last digits of the pictures that come before each."""
    messages: list[dict] = []
    pictures: list[str] = []
    for turn in turns:
        if isinstance(turn, int):
            pictures.append(f"{turn:064x}")
            continue
        messages.append({"role": "user", "text": turn, "pictures": pictures})
        messages.append({"role": "assistant", "text": answer, "pictures": []})
        pictures = []
    return {"messages": messages, "pixels": {f"{n:064x}": np.zeros((8, 8, 3), np.uint8) for n in range(10)}}


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_verify_names_questions_and_files_on_two_sides(tmp_path: Path, format: str) -> None:
    """In any turn, whichever picture of a row it is; what the assistant says is no question."""
    said = {
        "train": [asked("0"), asked("Is it a shared\n question?"), asked(7, 8, "1"), asked("2", 9, "3")],
        "test": [
            asked("is  it A SHARED question?", "What is it now?"),
            asked(6, 8, "Else?"),
            asked("Other?", 9, "And?"),
            asked(5, "More?", answer="0"),
        ],
    }
    rows = {(s, "vqa"): [make_row("vqa", s, k, 8) | one for k, one in enumerate(x)] for s, x in said.items()}
    make_folder(tmp_path, rows, 8, format)
    assert verify(tmp_path)[0] == 0
    code, (first, *lines) = verify(tmp_path, "--leaks")
    assert code == 1
    assert "holds no hashes of its pictures" in first
    assert lines == [
        "train medical-vqa/train-1: the question is also in test medical-vqa/test-0",
        "train medical-vqa/train-2: the picture's file is also in test medical-vqa/test-1",
        "train medical-vqa/train-3: the picture's file is also in test medical-vqa/test-2",
    ]


def test_a_picture_drawn_in_train_and_shown_in_test_is_a_leak(tmp_path: Path) -> None:
    drawn, shown = make_row("edit", "train", 0, 8), make_row("vqa", "test", 1, 8)
    name = drawn["messages"][1]["pictures"][0]
    shown["messages"][0]["pictures"] = [name]
    shown["pixels"] = drawn["pixels"]
    make_folder(tmp_path, {("train", "edit"): [drawn], ("test", "vqa"): [shown]}, 8)
    code, lines = verify(tmp_path, "--leaks")
    assert code == 1
    assert lines[1:] == ["train edits/train-0: the picture's file is also in test medical-vqa/test-1"]


@pytest.mark.parametrize(("count", "others", "leaks"), [(19, 0, True), (20, 0, False), (20, 390, True)])
def test_a_question_that_is_only_a_form_is_no_leak(
    tmp_path: Path, count: int, others: int, leaks: bool
) -> None:
    """One asked in 20 rows at least, and in more than 5 % of those of the source."""
    texts = ["Describe the picture."] * count + [f"What is {i}?" for i in range(others)]
    first, *train = [make_row("text", "train", key, prompt=text) for key, text in enumerate(texts)]
    test = [{**first, "split": "test", "sample_id": "pubmedqa/test-0"}]
    make_folder(tmp_path, {("train", "text"): train, ("test", "text"): test})
    code, lines = verify(tmp_path, "--leaks")
    assert (code, len(lines) - 1) == ((1, count - 1) if leaks else (0, 1))


def test_verify_names_near_duplicate_pictures_and_an_edited_hash_file(built: Path, tmp_path: Path) -> None:
    """The built shards, their rows of validation said to be of pictures nearly the same as others."""
    folder = Path(shutil.copytree(built / "shards", tmp_path / "shards"))
    pictures = pl.DataFrame(pl.from_arrow(pq.read_table(folder / HASHES)))
    rows = pl.scan_ipc(f"{folder}/*/vqa-*.arrow").select("sample_id", "split", "messages").collect()
    names = pl.col("messages").list.first().struct.field("pictures").list.first()
    rows = rows.select("sample_id", "split", image_sha256=names)
    held = rows.join(pictures, on="image_sha256").filter(pl.col("picture_hash").is_not_null())
    train, other = (
        held.filter(pl.col("split") == side).sort("sample_id").row(0) for side in ("train", "validation")
    )
    near = np.unpackbits(np.frombuffer(train[3], np.uint8))  # its first bits are those of the transform
    near[:NEAR] ^= 1
    changed = pl.when(pl.col("image_sha256") == other[2]).then(pl.lit(np.packbits(near).tobytes()))
    changed = pictures.with_columns(picture_hash=changed.otherwise("picture_hash"))
    manifest = load_manifest(folder)
    sha256 = duplicates.write_hashes(folder, changed.to_arrow())
    assert verify(folder) == (1, [f"{HASHES}: sha256 differs from the manifest"])
    preprocessing = {**manifest.preprocessing, "hashes_sha256": sha256}
    write_manifest(folder, dataclasses.replace(manifest, preprocessing=preprocessing))
    says = f"train {train[0]}: nearly the same picture is also in validation {other[0]}"
    assert says in duplicates.find_leaks(folder)
