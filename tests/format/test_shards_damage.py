"""Whatever happens to a folder of shards, it is named; nothing damaged is read in silence."""

import io
import json
import os
import random
import re
import shutil
import tarfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from shard_factory import SOURCES, flip, make_folder, make_mixed, make_row

from janus.common.errors import UserError
from janus.common.files import hash_file
from shards.compare.check import verify_folder
from shards.manifest import MANIFEST, TOKENIZER, SourceCounts, load_manifest, write_manifest
from shards.pictures import CODECS, UNDERSTOOD
from shards.read import ShardSet
from shards.write import publish, write_pictures

SIZE = 8
FORMATS = {"arrow": ".arrow", "webdataset": ".tar"}


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_mixed(tmp_path / "shards", 4, SIZE, [*SOURCES], format=request.param)


def shard(folder: Path, name: str) -> Path:
    return folder / f"{name}{FORMATS[load_manifest(folder).format]}"


READS = (lambda task: map(task.read, range(len(task))), lambda task: [task.block(np.arange(len(task)))])
"""Every sample alone, and as the trainer reads them: all fields of a block of each task."""


def outcome_of(folder: Path, read: Callable) -> list | str:
    try:
        shards = ShardSet.open(folder)
        read_rows = [vars(x) for pair in shards.splits_tasks() for x in read(shards.rows(*pair))]
        return deepcopy(read_rows)  # arrays are views into the file
    except UserError as error:
        return error.message


def assert_unharmed_or_named(folder: Path, good: dict[Callable, Any], name: str) -> None:
    """All is read as it was (the damage hit padding, or what no sample is made of), or it is named."""
    for read, undamaged in good.items():
        outcome = outcome_of(folder, read)
        if isinstance(outcome, str):
            assert name in outcome
        else:
            np.testing.assert_equal(outcome, undamaged)


def assert_refused(folder: Path, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ShardSet.open(folder)


@pytest.mark.parametrize(
    ("task", "column"),
    [("vqa", "prompt"), ("text", "answer"), ("t2i", "image_tokens"), ("edit", "pictures"), ("text", "role")],
)
def test_a_flipped_bit_is_named_by_read_and_by_verify(folder: Path, task: str, column: str) -> None:
    row = make_row(task, "train", 2, SIZE)
    needles = {"image_tokens": np.array(row["image_tokens"], "<u2").tobytes(), "role": b"assistant"}
    needles["pictures"] = "".join(row["messages"][1]["pictures"]).encode()
    needle = needles.get(column) or row[column].encode()
    first = 0 if column == "role" else 2  # every row has the roles
    sample_id = make_row(task, "train", first, SIZE)["sample_id"]
    path = flip(shard(folder, f"train/{task}-00000"), needle)
    rows = ShardSet.open(folder).rows("train", task)
    assert rows.read(1).source_key == "train-1"
    for read in (rows.read, lambda i: rows.block(np.array([1, i, 3]))):
        with pytest.raises(
            UserError, match=rf"train/{task}-00000\.\w+: row {first} \({sample_id}\): content"
        ):
            read(first)
    name = path.relative_to(folder).as_posix()
    assert verify_folder(folder) == [
        f"{name}: sha256 differs from the manifest",
        f"{name}: row {first} ({sample_id}): content does not match its xxh3",
    ]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_flipped_bit_of_a_picture_is_named_by_each_row_that_reads_it_and_by_verify(
    tmp_path: Path, format: str, codec: str
) -> None:
    """Rows 1 and 2 read the same two pictures, the second of them damaged."""
    first, second, third = (make_row("vqa", "train", key, SIZE, shown=key + 1) for key in range(3))
    same = {name: second[name] for name in ("messages", "pixels")}
    make_folder(tmp_path, {("train", "vqa"): [first, second, third | same]}, SIZE, format, codec=codec)
    name = second["messages"][0]["pictures"][1]
    path = flip(shard(tmp_path, "pictures/understanding-00000"), CODECS[codec].encode(second["pixels"][name]))
    rows = ShardSet.open(tmp_path).rows("train", "vqa")
    assert rows.read(0).images[0].tobytes() == first["pixels"][first["messages"][0]["pictures"][0]].tobytes()
    problem = f"pictures/{path.name}: picture 2 ({name}): content does not match its xxh3"
    for read in (rows.read, lambda i: rows.block(np.array([0, i]))):
        for row in (1, 2):
            with pytest.raises(UserError, match=re.escape(f"{problem}; build the shards again")):
                read(row)
    assert verify_folder(tmp_path) == [f"pictures/{path.name}: sha256 differs from the manifest", problem]


def test_any_damaged_byte_is_named_and_never_changes_a_sample(folder: Path) -> None:
    dice, good = random.Random(1), {read: outcome_of(folder, read) for read in READS}
    names = [*(f"train/{task}" for task in SOURCES), "pictures/understanding", "pictures/generation"]
    for _ in range(250):
        path = shard(folder, f"{dice.choice(names)}-00000")
        kept, name = path.read_bytes(), path.relative_to(folder).as_posix()
        flip(path, dice.randrange(len(kept)), dice.choice([1, 4, 128, 255]))
        assert f"{name}: sha256 differs from the manifest" in verify_folder(folder)
        assert_unharmed_or_named(folder, good, name)
        path.write_bytes(kept)


def test_damaged_counts_are_an_error_that_names_the_shard(tmp_path: Path) -> None:
    path = make_mixed(tmp_path, count=4, image_size=SIZE) / "train/text-00000.arrow"
    spans = pa.ipc.open_file(path).get_batch(0).column("supervised").buffers()[1].to_pybytes()
    flip(path, path.read_bytes().index(spans) + 7, 0x7F)  # the high byte of an offset
    with pytest.raises(UserError, match=r"train/text-00000\.arrow: supervised cannot be read"):
        _ = ShardSet.open(tmp_path).rows("train", "text").supervised_tokens


@pytest.mark.parametrize(
    "names",
    [
        ("train/vqa-00000", "train/text-00000", "train/text-00007"),
        ("pictures/understanding-00000", "pictures/generation-00000", "pictures/understanding-00001"),
    ],
)
def test_missing_truncated_and_extra_files_are_all_named_at_once(folder: Path, names: tuple) -> None:
    missing, cut, extra = (shard(folder, name) for name in names)
    shutil.copy(cut, extra)
    missing.unlink()
    size = cut.stat().st_size
    os.truncate(cut, size - 100)
    with pytest.raises(UserError) as caught:
        ShardSet.open(folder)
    problems = [
        f"{cut.relative_to(folder)}: truncated, {size - 100} bytes of {size}",
        f"{missing.relative_to(folder)}: missing",
        f"{extra.relative_to(folder)}: extra, not in manifest.json",
    ]
    assert sorted(problems) == sorted(verify_folder(folder))
    assert all(problem in caught.value.message for problem in problems)
    assert "\n" not in caught.value.message


def test_an_edited_manifest_is_named(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"rows": 4', '"rows": 3', 1))
    assert_refused(folder, r"manifest\.json: was edited")
    problems = verify_folder(folder)
    assert problems[0] == "manifest.json: was edited after it was written"
    assert "4 rows, the manifest says 3" in problems[1]


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (
            lambda m: m.update(schema_version=99),
            "schema_version is 99, this program reads 2; build the shards",
        ),
        (lambda m: m.update(schema_version=1), "schema_version is 1, this program reads 2; build the shards"),
        (lambda m: m["shards"][0].update(path="../../etc/passwd"), r"path '../../etc/passwd'"),
        (lambda m: m["shards"][0].update(path="/etc/text-00000.arrow"), "path '/etc"),
        (lambda m: m["shards"][0].update(split="test"), "path 'train"),
        (lambda m: m["shards"][0].update(rows="4"), "rows is '4'"),
        (lambda m: m["pictures"][0].update(path="../../etc/passwd"), r"path '../../etc/passwd'"),
        (lambda m: m["pictures"][0].update(path="pictures/../x-00000.arrow"), "path 'pictures"),
        (lambda m: m["pictures"][0].update(path="train/text-00000.arrow"), "path 'train"),
        (lambda m: m["pictures"][0].update(pictures=None), "pictures is None"),
        (lambda m: m["pictures"].append({"path": "pictures/understanding-00001.arrow"}), "missing"),
        (lambda m: m.pop("pictures"), "not a shard manifest"),
        (lambda m: m["preprocessing"].pop("pixels"), "pixels"),
        (lambda m: m["preprocessing"].update(pixels="jpeg"), "pixels is 'jpeg', expected one of webp, raw"),
        (lambda m: m.pop("counts"), "not a shard manifest"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.update(shards=7), "not a shard manifest"),
        (lambda m: m.update(preprocessing={}), "image_size"),
        (lambda m: m.update(shards=[]), "0 shards"),
    ],
)
def test_a_hostile_manifest_is_one_line(tmp_path: Path, edit: Callable, complaint: str) -> None:
    make_mixed(tmp_path, count=1, image_size=SIZE)
    content = json.loads((tmp_path / MANIFEST).read_text())
    edit(content)
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    assert_refused(tmp_path, complaint)


def test_a_folder_that_is_none_or_was_never_finished_and_rows_that_are_not_there(tmp_path: Path) -> None:
    rows = {("train", "text"): [make_row("text", "train", 0)]}
    folder = make_folder(tmp_path / "shards", rows, SIZE)
    with pytest.raises(UserError, match="no train/vqa rows; there are train/text"):
        ShardSet.open(folder).rows("train", "vqa")
    assert_refused(tmp_path / "shard", r"no such folder \(did you mean .*/shards\?\)")
    (folder / MANIFEST).unlink()
    assert_refused(folder, "never finished")


def test_a_changed_or_missing_tokenizer_is_named(folder: Path) -> None:
    flip(folder / TOKENIZER, 5)
    assert verify_folder(folder) == [f"{TOKENIZER}: sha256 differs from the manifest"]
    (folder / TOKENIZER).unlink()
    assert verify_folder(folder) == [f"{TOKENIZER}: missing"]


def test_a_shard_with_other_columns_is_named(tmp_path: Path) -> None:
    path = make_mixed(tmp_path, count=2, image_size=SIZE) / "train/text-00000.arrow"
    table = pa.ipc.open_file(path).read_all()
    for changed, complaint in [
        (table.drop_columns(["prompt"]), "column prompt is missing, expected string"),
        (table.set_column(11, "num_tokens", table["num_tokens"].cast("int64")), "column num_tokens is int64"),
    ]:
        with pa.ipc.new_file(path, changed.schema) as writer:
            writer.write_table(changed)
        resign(tmp_path, "train/text-00000.arrow")
        assert_refused(tmp_path, rf"train/text-00000\.arrow: {complaint}")
    make_mixed(tmp_path, count=2, image_size=SIZE)
    name = "pictures/understanding-00000.arrow"
    shutil.copy(tmp_path / "train/vqa-00000.arrow", tmp_path / name)
    resign(tmp_path, name)
    assert_refused(tmp_path, rf"{name}: not readable pictures \(.*columns sample_id, task")


def resign(folder: Path, name: str) -> None:
    """Rewrite the manifest for a replaced shard, as someone who knows the format could."""
    manifest, path = load_manifest(folder), folder / name
    fresh = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    shards, pictures = (
        tuple(replace(e, **fresh) if e.path == name else e for e in entries)  # type: ignore[type-var]
        for entries in (manifest.shards, manifest.pictures)
    )
    write_manifest(folder, replace(manifest, shards=shards, pictures=pictures))


@pytest.mark.parametrize("codec", CODECS)
def test_pictures_of_another_size_or_number_or_none_at_all_are_named(folder: Path, codec: str) -> None:
    """Written again with right hashes, as someone who knows the format could."""
    path = shard(folder, "pictures/understanding-00000")
    held, gone = (make_row("vqa", "train", key, SIZE)["messages"][0]["pictures"][0] for key in range(2))

    def rewrite(data: bytes, **facts: int) -> None:
        manifest = load_manifest(folder)
        (entry,) = write_pictures([(held, data)], folder, UNDERSTOOD, "webp", manifest.format)
        others = [other for other in manifest.pictures if other.path != entry.path]
        preprocessing = {**manifest.preprocessing, "pixels": codec}
        pictures = (replace(entry, **facts), *others)
        write_manifest(folder, replace(manifest, pictures=pictures, preprocessing=preprocessing))

    for pixels in (None, np.zeros((SIZE + 1, SIZE, 3), np.uint8)):
        rewrite(b"no picture, but hashed" if pixels is None else CODECS[codec].encode(pixels))
        rows = ShardSet.open(folder).rows("train", "vqa")
        with pytest.raises(
            UserError, match=rf"{path.name}: picture 0 \({held}\): does not decode to 8×8 pixels"
        ):
            rows.read(0)
        with pytest.raises(UserError, match=rf"picture {gone} is in none of the folder's pictures"):
            rows.read(1)
    rewrite(b"", pictures=3)
    assert_refused(folder, rf"{path.name}: 1 pictures, the manifest says 3")


STEM, NAME = "train-text-00000-0000000", "0" * 64
SHARD, PICTURES = "train/text-00000.tar", "pictures/understanding-00000.tar"
STRANGERS = [(SHARD, name, "") for name in ("/etc/passwd", "../../x.json", f"{STEM}0.pickle", "a.json")]
STRANGERS += [(PICTURES, name, "") for name in ("../x.webp", f"{NAME}.png", f"{STEM}0.json")]
STRANGERS += [(SHARD, f"{STEM}2.json", "/etc/passwd"), (PICTURES, f"{NAME}.webp", "/etc/passwd")]


@pytest.mark.parametrize(("file", "name", "link"), STRANGERS)
def test_a_tar_member_that_does_not_belong_is_refused_by_name(
    tmp_path: Path, file: str, name: str, link: str
) -> None:
    make_mixed(tmp_path, count=2, image_size=SIZE, format="webdataset")
    member = tarfile.TarInfo(name)
    if link:
        member.type, member.linkname = tarfile.SYMTYPE, link
    with tarfile.open(tmp_path / file, "a") as tar:
        tar.addfile(member, io.BytesIO())
    resign(tmp_path, file)
    assert_refused(tmp_path, rf"{file}: member '{name}' does not belong")


def test_pickled_arrays_are_not_unpickled(tmp_path: Path) -> None:
    """An npy member that claims to hold objects is refused, not executed."""
    make_mixed(tmp_path, count=2, image_size=SIZE, format="webdataset")
    path = tmp_path / "train/t2i-00000.tar"
    path.write_bytes(path.read_bytes().replace(b"'descr': '<u2'", b"'descr': '|O8'", 1))
    with pytest.raises(UserError, match="row 0"):
        ShardSet.open(tmp_path).rows("train", "t2i").read(0)


def test_shards_of_another_split_put_in_place_are_named(tmp_path: Path) -> None:
    make_mixed(tmp_path, count=2, image_size=SIZE)
    shutil.copy(tmp_path / "validation/text-00000.arrow", tmp_path / "train/text-00000.arrow")
    resign(tmp_path, "train/text-00000.arrow")
    assert any("is validation/text" in problem for problem in verify_folder(tmp_path))


def test_counts_that_explain_nothing_are_not_written(tmp_path: Path) -> None:
    manifest = load_manifest(make_mixed(tmp_path, count=1, image_size=SIZE))
    for counts, complaint in [
        (SourceCounts(read=9, rejected={"blank": 1}, written=5), "9 rows read, 6 written or rejected"),
        (SourceCounts(read=5, rejected={}, written=5), "9 rows in the shards, 5 counted"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            write_manifest(tmp_path, replace(manifest, counts={"made-up": counts}))


def test_publish_replaces_shards_and_nothing_else(tmp_path: Path) -> None:
    build = partial(make_mixed, tmp_path / ".tmp-shards", image_size=SIZE)
    for count in (1, 3):
        publish(build(count), tmp_path / "shards")
        assert len(ShardSet.open(tmp_path / "shards").rows("train", "vqa")) == count
        assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    letter = tmp_path / "home" / "letter.txt"
    letter.parent.mkdir()
    letter.write_text("dear")
    with pytest.raises(UserError, match="home: exists and is not a folder of shards"):
        publish(build(1), tmp_path / "home")
    assert letter.read_text() == "dear"


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("train/text-00000.arrow", b"pubmedqa/"),
        ("pictures/understanding-00000.arrow", b"\0\0\0\x40\0\0\0\x80"),
    ],
)
def test_absurd_lengths_in_the_file_do_not_bring_the_process_down(
    tmp_path: Path, name: str, first: bytes
) -> None:
    """Every 4 bytes of the record batch's own description set high, one after the other."""
    make_mixed(tmp_path, count=2, image_size=SIZE)
    path = tmp_path / name
    kept, good = path.read_bytes(), {READS[0]: outcome_of(tmp_path, READS[0])}
    footer = len(kept) - 10 - int.from_bytes(kept[-10:-6], "little")
    data = kept.index(first)  # the first bytes of data
    for place in [*range(data - 900, data, 4), *range(footer, len(kept), 16)]:
        path.write_bytes(kept[:place] + b"\xff\xff\xff\x9a" + kept[place + 4 :])
        assert_unharmed_or_named(tmp_path, good, name)
