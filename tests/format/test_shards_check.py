"""A start hashes what changed since the last full check; `shards seal` accepts what was edited on purpose."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner
from shard_factory import finish_folder, make_batch, make_mixed, make_row

from janus.common.errors import UserError
from shards import check
from shards.check import STAMP, open_verified, seal, verify_folder
from shards.cli import main
from shards.manifest import ShardEntry, load_manifest
from shards.read import ShardSet
from shards.rows import row_hashes
from shards.schema import CONTENT_SCHEMA, SCHEMA

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


def edit(folder: Path, name: str = SHARD, keep_times: bool = False) -> Path:
    """One letter of row 2's prompt changed in place."""
    path, status = folder / name, (folder / name).stat()
    content = bytearray(path.read_bytes())
    content[content.index(make_row("text", "train", 2)["prompt"].encode())] ^= 1
    path.write_bytes(content)
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path


def test_only_what_changed_is_hashed_again(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    open_verified(folder)
    assert len(hashed) == 6
    hashed.clear()
    open_verified(folder)
    assert hashed == []
    (folder / SHARD).touch()
    open_verified(folder)
    assert hashed == [SHARD]
    hashed.clear()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))  # stamp, sizes and times of content copied too
    open_verified(copy)
    assert len(hashed) == 6
    hashed.clear()
    assert verify_folder(copy) == []  # `shards verify` trusts no stamp
    assert len(hashed) == 6


@pytest.mark.parametrize("keep_times", [False, True])
def test_an_edited_shard_is_refused_at_the_start(folder: Path, keep_times: bool) -> None:
    open_verified(folder)
    edit(folder, keep_times=keep_times)
    with pytest.raises(UserError, match=rf"{SHARD}: row 2 \(pubmedqa/train-2\): content .* \(shards seal"):
        open_verified(folder)


def test_an_edit_that_no_file_time_shows_is_refused_when_the_row_is_read(folder: Path) -> None:
    edit(folder)
    facts = {entry.path: check._facts(folder / entry.path) for entry in load_manifest(folder).shards}
    check._write_stamp(folder, facts)
    rows = open_verified(folder).rows("train", "text")
    with pytest.raises(UserError, match=rf"{SHARD}: row 2 \(pubmedqa/train-2\): content"):
        rows.block(np.array([1, 2]))


def test_a_folder_that_cannot_be_written_to_has_its_stamp_in_the_cache(
    folder: Path, cache: Path, hashed: list[str]
) -> None:
    (folder / STAMP).mkdir()  # whatever keeps the stamp out, also from root
    open_verified(folder)
    assert len(list(cache.rglob("*.json"))) == 1
    hashed.clear()
    open_verified(folder)
    assert hashed == []


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"manifest": 1, "files": 2}'])
def test_a_stamp_that_makes_no_sense_is_none(folder: Path, hashed: list[str], content: str) -> None:
    (folder / STAMP).write_text(content)
    open_verified(folder)
    assert len(hashed) == 6


class _Sparse:
    """A file whose large zero buffers are left out."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.closed = False

    def write(self, block: object) -> int:
        view = memoryview(block).cast("B")  # type: ignore[arg-type]
        if len(view) < 1 << 20:
            return self._file.write(view)
        self._file.seek(len(view), os.SEEK_CUR)
        return len(view)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def test_a_second_start_with_200_gb_of_shards_reads_none_of_them(tmp_path: Path, hashed: list[str]) -> None:
    """One sparse shard with black pictures, linked 200 times."""
    side, rows, files = 4096, 20, 200
    batch = make_batch([make_row("vqa", "train", key, 8, image=None) for key in range(rows)])
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(rows * 3 * side**2)
    zeros = pa.memory_map(str(tmp_path / "zeros")).read_buffer()
    offsets = pa.array(np.arange(rows + 1) * 3 * side**2, pa.int64()).buffers()[1]
    images = pa.Array.from_buffers(pa.large_binary(), rows, [None, offsets, zeros])
    columns = [*batch.columns[:13], images, batch.column("image_tokens"), pa.array([0] * rows, pa.uint64())]
    first = tmp_path / "shards/train/vqa-00000.arrow"
    first.parent.mkdir(parents=True)
    sink = _Sparse(first)
    with pa.ipc.new_file(pa.PythonFile(sink, "w"), SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    sink.close()
    entries = []
    for number in range(files):
        name = f"train/vqa-{number:05d}.arrow"
        if number:
            os.link(first, tmp_path / "shards" / name)
        sizes = (rows, 9, 9, first.stat().st_size)
        entries.append(ShardEntry(name, "train", "vqa", *sizes, sha256="0" * 64))
    finish_folder(tmp_path / "shards", entries, side)
    assert sum(entry.bytes for entry in entries) > 200e9
    facts = {entry.path: check._facts(tmp_path / "shards" / entry.path) for entry in entries}
    check._write_stamp(tmp_path / "shards", facts)
    began = time.perf_counter()
    assert len(open_verified(tmp_path / "shards").rows("train", "vqa").num_tokens) == files * rows
    assert time.perf_counter() - began < 3
    assert hashed == []


def test_edited_shards_are_sealed_as_found_and_that_is_recorded(folder: Path) -> None:
    edited = edit(folder)
    (folder / "train/vqa-00000.arrow").unlink()
    result = CliRunner().invoke(main, ["seal", str(folder)])
    assert result.exit_code == 0, result.output
    assert f"{SHARD}: row 2 (pubmedqa/train-2)" in result.output
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
    rows = [make_row("text", "train", key) for key in range(3)]
    batch = make_batch([rows[0], {**rows[1], "num_tokens": 3}, rows[2]])
    before = (folder / "manifest.json").read_bytes()
    for content in (batch, batch.drop_columns(["prompt"])):
        with pa.ipc.new_file(folder / SHARD, content.schema) as writer:
            writer.write_batch(content)
        with pytest.raises(UserError, match=rf"{SHARD}: cannot be sealed \(.*(train-1: num_tokens|prompt)"):
            seal(folder)
    assert (folder / "manifest.json").read_bytes() == before
    assert {field.name for field in CONTENT_SCHEMA} - {"prompt"} <= set(batch.schema.names)
    tar = make_mixed(tmp_path / "tar", 2, SIZE, format="webdataset")
    with (tar / "train/text-00000.tar").open("ab") as file:
        file.write(b"\0" * 512)
    with pytest.raises(UserError, match=r"text-00000\.tar: only Arrow shards"):
        seal(tar)
