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
from shards import check
from shards.check import STAMP, open_verified, seal, verify_folder
from shards.cli import main
from shards.manifest import ShardEntry, load_manifest
from shards.read import ShardSet
from shards.rows import row_hashes
from shards.schema import SCHEMA

SIZE = 8
SHARD = "train/text-00000.arrow"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are checked in full, in the order of the manifest."""
    seen: list[str] = []
    checked = check._shard_problems

    def note(folder: Path, entry: ShardEntry) -> list[str]:
        seen.append(entry.path)
        return checked(folder, entry)

    monkeypatch.setattr(check, "_shard_problems", note)
    return seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_mixed(tmp_path / "shards", count=4, image_size=SIZE)


def edit(folder: Path, keep_times: bool = False) -> Path:
    status = (folder / SHARD).stat()
    path = flip(folder / SHARD, make_row("text", "train", 2)["prompt"].encode())
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path


def hashes(hashed: list[str], folder: Path, start: Callable[[Path], object] = open_verified) -> list[str]:
    hashed.clear()
    start(folder)
    return hashed


def test_only_what_changed_is_hashed_again(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    assert len(hashes(hashed, folder)) == 6
    assert hashes(hashed, folder) == []
    (folder / SHARD).touch()
    assert hashes(hashed, folder) == [SHARD]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))  # stamp, sizes and times of content copied too
    assert len(hashes(hashed, copy)) == 6
    assert len(hashes(hashed, copy, verify_folder)) == 6  # `shards verify` trusts no stamp
    for senseless in ("", "{}", "[1]", '{"manifest": 1, "files": 2}'):
        (folder / STAMP).write_text(senseless)
        assert len(hashes(hashed, folder)) == 6


def test_a_stamp_that_finds_no_place_is_in_the_cache(folder: Path, cache: Path, hashed: list[str]) -> None:
    (folder / STAMP).mkdir()  # whatever keeps the stamp out, also from root
    open_verified(folder)
    assert len(list(cache.rglob("*.json"))) == 1
    assert hashes(hashed, folder) == []


@pytest.mark.parametrize("keep_times", [False, True])
def test_an_edited_shard_is_refused_at_the_start(folder: Path, keep_times: bool) -> None:
    open_verified(folder)
    edit(folder, keep_times=keep_times)
    with pytest.raises(UserError, match=rf"{SHARD}: row 2 \(pubmedqa/train-2\): content .* \(shards seal"):
        open_verified(folder)


def stamp_unchecked(folder: Path) -> None:
    """A stamp as a full check leaves it, without one."""
    check._write_stamp(folder, {e.path: check._facts(folder / e.path) for e in load_manifest(folder).shards})


def test_an_edit_that_no_file_time_shows_is_refused_when_the_row_is_read(folder: Path) -> None:
    edit(folder)
    stamp_unchecked(folder)
    rows = open_verified(folder).rows("train", "text")
    with pytest.raises(UserError, match=rf"{SHARD}: row 2 \(pubmedqa/train-2\): content"):
        rows.block(np.array([1, 2]))


class _Sparse(io.FileIO):
    """A file whose large zero buffers are left out."""

    def write(self, block: Any) -> int:
        view = memoryview(block).cast("B")
        if len(view) < 1 << 20:
            return super().write(view)
        self.seek(len(view), os.SEEK_CUR)
        return len(view)


def test_a_second_start_with_200_gb_of_shards_reads_none_of_them(tmp_path: Path, hashed: list[str]) -> None:
    side, rows, files = 4096, 20, 200
    batch = make_batch([make_row("vqa", "train", key, 8, image=None) for key in range(rows)])
    (tmp_path / "zeros").touch()
    os.truncate(tmp_path / "zeros", rows * 3 * side**2)
    zeros = pa.memory_map(str(tmp_path / "zeros")).read_buffer()
    offsets = pa.array(np.arange(rows + 1) * 3 * side**2, pa.int64()).buffers()[1]
    images = pa.Array.from_buffers(pa.large_binary(), rows, [None, offsets, zeros])
    columns = [*batch.columns[:13], images, batch.column("image_tokens"), pa.array([0] * rows, pa.uint64())]
    folder = tmp_path / "shards"
    names = [f"train/vqa-{number:05d}.arrow" for number in range(files)]
    (folder / "train").mkdir(parents=True)
    with _Sparse(folder / names[0], "w") as file, pa.ipc.new_file(pa.PythonFile(file, "w"), SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    for name in names[1:]:
        os.link(folder / names[0], folder / name)
    sizes = (rows, 9, 9, (folder / names[0]).stat().st_size)
    assert files * sizes[-1] > 200e9
    finish_folder(folder, [ShardEntry(n, "train", "vqa", *sizes, sha256="0" * 64) for n in names], side)
    stamp_unchecked(folder)
    began = time.perf_counter()
    assert len(open_verified(folder).rows("train", "vqa").num_tokens) == files * rows
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
    assert rows.read(2).prompt != make_row("text", "train", 2)["prompt"]
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
