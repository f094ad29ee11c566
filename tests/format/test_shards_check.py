"""A start hashes what changed since the last full check; `shards seal` accepts what was edited on purpose."""

import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from commands import run_well
from shard_factory import finish_folder, flip, make_batch, make_mixed, make_row

from janus.common.errors import UserError
from shards.cli import main
from shards.compare import check
from shards.compare.check import STAMP, open_verified, seal, verify_folder
from shards.manifest import PictureEntry, ShardEntry, load_manifest
from shards.pictures import CODECS, PICTURE_SCHEMA, UNDERSTOOD, read_arrow
from shards.read import ShardSet
from shards.rows import row_hashes
from shards.write import write_pictures, write_shards

SIZE = 8
FILES = 8  # three tasks in two splits, and two of pictures
SHARD, PICTURES = "train/text-00000.arrow", "pictures/understanding-00000.arrow"
NAMES = [name for key in range(4) for name in make_row("vqa", "train", key, SIZE)["pixels"]]
DAMAGE = {
    SHARD: rf"{SHARD}: row 2 \(pubmedqa/train-2\): content",
    PICTURES: rf"{PICTURES}: picture 2 \({NAMES[2]}\): content",
}
"""What is said once `edit` has changed a file."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are checked in full, in the order of the manifest."""
    seen: list[str] = []
    checked = check._file_problems

    def note(folder: Path, entry: ShardEntry | PictureEntry) -> list[str]:
        seen.append(entry.path)
        return checked(folder, entry)

    monkeypatch.setattr(check, "_file_problems", note)
    return seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_mixed(tmp_path / "shards", count=4, image_size=SIZE)


def edit(folder: Path, file: str = SHARD, keep_times: bool = False) -> Path:
    """Row 2 of the shard, or picture 2 of the file of pictures."""
    status = (folder / file).stat()
    needle = make_row("text", "train", 2)["prompt"].encode() if file == SHARD else encoded(2)
    path = flip(folder / file, needle)
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path


def encoded(key: int) -> bytes:
    """The picture of that vqa row as the file holds it."""
    (pixels,) = make_row("vqa", "train", key, SIZE)["pixels"].values()
    return CODECS["webp"].encode(pixels)


def hashes(hashed: list[str], folder: Path, start: Callable[[Path], object] = open_verified) -> list[str]:
    hashed.clear()
    start(folder)
    return hashed


def test_only_what_changed_is_hashed_again(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    assert len(hashes(hashed, folder)) == FILES
    assert hashes(hashed, folder) == []
    for file in (SHARD, PICTURES):
        (folder / file).touch()
        assert hashes(hashed, folder) == [file]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))  # stamp, sizes and times of content copied too
    assert len(hashes(hashed, copy)) == FILES
    assert len(hashes(hashed, copy, verify_folder)) == FILES  # `shards verify` trusts no stamp
    for senseless in ("", "{}", "[1]", '{"manifest": 1, "files": 2}'):
        (folder / STAMP).write_text(senseless)
        assert len(hashes(hashed, folder)) == FILES


def test_a_stamp_that_finds_no_place_is_in_the_cache(folder: Path, cache: Path, hashed: list[str]) -> None:
    (folder / STAMP).mkdir()  # whatever keeps the stamp out, also from root
    open_verified(folder)
    assert len(list(cache.rglob("*.json"))) == 1
    assert hashes(hashed, folder) == []


@pytest.mark.parametrize("file", DAMAGE)
@pytest.mark.parametrize("keep_times", [False, True])
def test_an_edited_file_is_refused_at_the_start(folder: Path, file: str, keep_times: bool) -> None:
    open_verified(folder)
    edit(folder, file, keep_times)
    with pytest.raises(UserError, match=rf"{DAMAGE[file]} .* \(shards seal"):
        open_verified(folder)


def stamp_unchecked(folder: Path) -> None:
    """A stamp as a full check leaves it, without one."""
    check._write_stamp(folder, {e.path: check._facts(folder / e.path) for e in load_manifest(folder).files})


@pytest.mark.parametrize("file", DAMAGE)
def test_an_edit_that_no_file_time_shows_is_refused_when_the_row_is_read(folder: Path, file: str) -> None:
    edit(folder, file)
    stamp_unchecked(folder)
    rows = open_verified(folder).rows("train", "text" if file == SHARD else "vqa")
    with pytest.raises(UserError, match=DAMAGE[file]):
        rows.block(np.array([1, 2]))


class _Sparse(io.FileIO):
    """A file whose large zero buffers are left out."""

    def write(self, block: Any) -> int:
        view = memoryview(block).cast("B")
        if len(view) < 1 << 20:
            return super().write(view)
        self.seek(len(view), os.SEEK_CUR)
        return len(view)


def test_a_second_start_with_200_gb_of_pictures_reads_none_of_them(tmp_path: Path, hashed: list[str]) -> None:
    side, count, files = 4096, 20, 200
    (tmp_path / "zeros").touch()
    os.truncate(tmp_path / "zeros", count * 3 * side**2)
    zeros = pa.memory_map(str(tmp_path / "zeros")).read_buffer()
    offsets = pa.array(np.arange(count + 1) * 3 * side**2, pa.int64()).buffers()[1]
    images = pa.Array.from_buffers(pa.large_binary(), count, [None, offsets, zeros])
    columns = [pa.array([f"{key:064x}" for key in range(count)]), images, pa.array([0] * count, pa.uint64())]
    folder = tmp_path / "shards"
    names = [f"pictures/understanding-{number:05d}.arrow" for number in range(files)]
    (folder / "pictures").mkdir(parents=True)
    with (
        _Sparse(folder / names[0], "w") as file,
        pa.ipc.new_file(pa.PythonFile(file, "w"), PICTURE_SCHEMA) as writer,
    ):
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=PICTURE_SCHEMA))
    for name in names[1:]:
        os.link(folder / names[0], folder / name)
    size, rows = (folder / names[0]).stat().st_size, [make_row("vqa", "train", key, SIZE) for key in range(9)]
    assert files * size > 200e9
    shards = write_shards([make_batch(rows)], folder, split="train", task="vqa")
    pictures = [PictureEntry(name, count, size, sha256="0" * 64) for name in names]
    finish_folder(folder, shards, side, pictures=pictures, codec="raw")
    stamp_unchecked(folder)
    began = time.perf_counter()
    assert len(open_verified(folder).rows("train", "vqa").num_tokens) == len(rows)
    assert time.perf_counter() - began < 3
    assert hashed == []


def test_edited_shards_are_sealed_as_found_and_that_is_recorded(folder: Path) -> None:
    edited = edit(folder)
    (folder / "train/vqa-00000.arrow").unlink()
    assert f"{SHARD}: row 2 (pubmedqa/train-2)" in run_well(main, "seal", folder)
    assert verify_folder(folder) == []
    (record,) = load_manifest(folder).sealed
    assert len(record["date"]) == 10
    assert record["differences"][0] == "train/vqa-00000.arrow: missing"
    assert any(line.startswith(f"{SHARD}: row 2") for line in record["differences"])
    rows = open_verified(folder).rows("train", "text")
    assert rows.read(2).messages[0].text != make_row("text", "train", 2)["prompt"]
    table = pa.ipc.open_file(edited).read_all()
    assert row_hashes(table.drop_columns(["xxh3"])).tolist() == table["xxh3"].to_pylist()
    assert seal(folder) == []
    assert len(load_manifest(folder).sealed) == 1


def test_a_shard_written_again_by_polars_is_sealed_with_its_counts(folder: Path) -> None:
    path = folder / SHARD
    rows = pl.read_ipc(path.read_bytes())
    rows.filter(pl.col("sample_id") != "pubmedqa/train-1").write_ipc(path)
    assert any(SHARD in line for line in seal(folder))
    shards = ShardSet.open(folder)
    assert len(shards.rows("train", "text")) == 3
    assert shards.manifest.counts["pubmedqa"].written == 5
    assert [sample.sample_id[-1] for sample in shards.rows("train", "text").unchecked()] == ["0", "2", "3"]
    assert verify_folder(folder) == []


def test_pictures_that_were_exchanged_are_sealed(folder: Path) -> None:
    """The second is blank now, the others as before; then a file of their own for the last two."""
    blank = CODECS["webp"].encode(np.zeros((SIZE, SIZE, 3), np.uint8))
    file = read_arrow(folder / PICTURES)
    coded = [(name, bytes(data)) for name, data in zip(file.names, file.data, strict=True)]
    coded[1] = (NAMES[1], blank)
    for last in (len(coded), -2):
        write_pictures(coded[:last], folder, UNDERSTOOD, "webp")
        if last == -2:
            write_pictures(coded[last:], folder / "new", UNDERSTOOD, "webp")
            (folder / "new" / PICTURES).replace(folder / PICTURES.replace("00000", "00001"))
            shutil.rmtree(folder / "new")
        assert any(line.startswith(f"{PICTURES}: ") for line in seal(folder))
        assert verify_folder(folder) == []
        rows = open_verified(folder).rows("train", "vqa")
        assert [int(rows.read(key).images[0].any()) for key in range(4)] == [1, 0, 1, 1]
    assert [entry.pictures for entry in load_manifest(folder).pictures] == [6, 4, 2]


def test_a_damaged_picture_and_a_row_without_its_picture_are_not_sealed(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    content = (folder / PICTURES).read_bytes()
    edit(folder, PICTURES)
    with pytest.raises(UserError, match=rf"{DAMAGE[PICTURES]} .*; mend or remove it"):
        seal(folder)
    (folder / PICTURES).unlink()
    lacks = rf"train/vqa-00000.arrow: row 0 \(medical-vqa/train-0\): picture {NAMES[0]} is in none"
    with pytest.raises(UserError, match=lacks):
        seal(folder)
    assert (folder / "manifest.json").read_bytes() == before
    (folder / PICTURES).write_bytes(content)
    assert verify_folder(folder) == []


def test_what_contradicts_itself_is_not_sealed(folder: Path, tmp_path: Path) -> None:
    rows = [make_row("text", "train", key, **({"num_tokens": 3} if key == 1 else {})) for key in range(3)]
    batch, before = make_batch(rows), (folder / "manifest.json").read_bytes()
    for content in (batch, batch.drop_columns(["prompt"])):
        with pa.ipc.new_file(folder / SHARD, content.schema) as writer:
            writer.write_batch(content)
        with pytest.raises(UserError, match=rf"{SHARD}: cannot be sealed \(.*(train-1: num_tokens|prompt)"):
            seal(folder)
    assert (folder / "manifest.json").read_bytes() == before
    tar = make_mixed(tmp_path / "tar", 2, SIZE, format="webdataset")
    os.truncate(tar / "train/text-00000.tar", 0)
    with pytest.raises(UserError, match=r"text-00000\.tar: only Arrow shards"):
        seal(tar)
