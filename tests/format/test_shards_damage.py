"""Whatever happens to a folder of shards, it is named; nothing damaged is read in silence."""

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from shard_factory import make_batch, make_folder, make_mixed, make_row

from janus.common.errors import UserError
from janus.common.files import hash_file
from shards.check import verify_folder
from shards.manifest import MANIFEST, TOKENIZER, load_manifest
from shards.read import ShardSet
from shards.write import publish

SIZE = 8
FORMATS = {"arrow": ".arrow", "webdataset": ".tar"}


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_mixed(tmp_path / "shards", count=4, image_size=SIZE, format=request.param)


def shard(folder: Path, name: str) -> Path:
    """The file of a shard, `train/vqa-00000` say, in the folder's format."""
    return folder / f"{name}{FORMATS[load_manifest(folder).format]}"


def flip(path: Path, place: int, bits: int = 4) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(data)


def read_all(folder: Path) -> list:
    shards = ShardSet.open(folder)
    tasks = [shards.rows(*pair) for pair in shards.splits_tasks()]
    return [plain(vars(task.read(i))) for task in tasks for i in range(len(task))]


def blocks_of(folder: Path) -> list:
    """What `read_all` reads, as the trainer reads it: all fields of a block of each task."""
    shards = ShardSet.open(folder)
    tasks = [shards.rows(*pair) for pair in shards.splits_tasks()]
    return [plain(vars(task.block(np.arange(len(task))))) for task in tasks]


def plain(value: Any) -> Any:
    """Fields whose arrays can be compared with ==."""
    if isinstance(value, dict):
        return {name: plain(field) for name, field in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def outcome_of(read: Callable[[Path], list], folder: Path) -> list | str:
    try:
        return read(folder)
    except UserError as error:
        return error.message


@pytest.mark.parametrize(("task", "needle"), [("vqa", "image"), ("text", "prompt"), ("t2i", "image")])
def test_a_flipped_bit_is_named_by_read_and_by_verify(folder: Path, task: str, needle: str) -> None:
    value = make_row(task, "train", 2, SIZE)[needle]
    path = shard(folder, f"train/{task}-00000")
    flip(path, path.read_bytes().index(value if isinstance(value, bytes) else value.encode()) + 3)
    rows = ShardSet.open(folder).rows("train", task)
    assert rows.read(1).source_key == "train-1"
    sample_id = make_row(task, "train", 2, SIZE)["sample_id"]
    for read in (rows.read, lambda i: rows.block(np.array([1, i, 3]))):
        with pytest.raises(UserError, match=rf"train/{task}-00000\.\w+: row 2 \({sample_id}\): content"):
            read(2)
    name = path.relative_to(folder).as_posix()
    assert verify_folder(folder) == [
        f"{name}: sha256 differs from the manifest",
        f"{name}: row 2 ({sample_id}): content does not match its xxh3",
    ]


def test_any_damaged_byte_is_named_and_never_changes_a_sample(folder: Path) -> None:
    dice, good = random.Random(1), {read: read(folder) for read in (read_all, blocks_of)}
    for _ in range(150):
        path = shard(folder, f"train/{dice.choice(['text', 'vqa', 't2i'])}-00000")
        kept = path.read_bytes()
        flip(path, dice.randrange(len(kept)), dice.choice([1, 4, 128, 255]))
        name = path.relative_to(folder).as_posix()
        assert f"{name}: sha256 differs from the manifest" in verify_folder(folder)
        for read, undamaged in good.items():
            outcome = outcome_of(read, folder)  # undamaged if it hit padding, or what no sample is made of
            assert outcome == undamaged or name in outcome
        path.write_bytes(kept)


def test_damaged_counts_are_an_error_that_names_the_shard(tmp_path: Path) -> None:
    make_mixed(tmp_path, count=4, image_size=SIZE)
    path = tmp_path / "train/text-00000.arrow"
    spans = pa.ipc.open_file(path).get_batch(0).column("supervised").buffers()[1].to_pybytes()
    place = path.read_bytes().index(spans) + 7  # the high byte of an offset
    data = bytearray(path.read_bytes())
    data[place] = 0x7F
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"train/text-00000\.arrow: supervised cannot be read"):
        _ = ShardSet.open(tmp_path).rows("train", "text").supervised_tokens


def test_missing_truncated_and_extra_shards_are_all_named_at_once(folder: Path) -> None:
    missing, cut = shard(folder, "train/vqa-00000"), shard(folder, "train/text-00000")
    extra = shard(folder, "train/text-00007")
    shutil.copy(cut, extra)
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(UserError) as caught:
        ShardSet.open(folder)
    problems = [
        f"{cut.relative_to(folder)}: truncated, {cut.stat().st_size} bytes of {cut.stat().st_size + 100}",
        f"{missing.relative_to(folder)}: missing",
        f"{extra.relative_to(folder)}: extra, not in manifest.json",
    ]
    assert sorted(problems) == sorted(verify_folder(folder))
    assert all(problem in caught.value.message for problem in problems)
    assert "\n" not in caught.value.message


def test_an_edited_manifest_is_named(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"rows": 4', '"rows": 3', 1))
    with pytest.raises(UserError, match=r"manifest\.json: was edited"):
        ShardSet.open(folder)
    problems = verify_folder(folder)
    assert problems[0] == "manifest.json: was edited after it was written"
    assert "4 rows, the manifest says 3" in problems[1]


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda m: m.update(schema_version=99), "schema_version is 99, this program reads 1"),
        (lambda m: m["shards"][0].update(path="../../etc/passwd"), r"shard path '../../etc/passwd'"),
        (lambda m: m["shards"][0].update(path="/etc/text-00000.arrow"), "shard path"),
        (lambda m: m["shards"][0].update(split="test"), "shard path"),
        (lambda m: m["shards"][0].update(rows="4"), "rows is '4'"),
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
    with pytest.raises(UserError, match=complaint):
        ShardSet.open(tmp_path)


def test_a_folder_that_is_none_or_was_never_finished(tmp_path: Path) -> None:
    make_mixed(tmp_path / "shards", count=1, image_size=SIZE)
    with pytest.raises(UserError, match=r"no such folder \(did you mean .*/shards\?\)"):
        ShardSet.open(tmp_path / "shard")
    (tmp_path / "shards" / MANIFEST).unlink()
    with pytest.raises(UserError, match="never finished"):
        ShardSet.open(tmp_path / "shards")


def test_a_changed_or_missing_tokenizer_is_named(folder: Path) -> None:
    flip(folder / TOKENIZER, 5)
    assert verify_folder(folder) == [f"{TOKENIZER}: sha256 differs from the manifest"]
    (folder / TOKENIZER).unlink()
    assert verify_folder(folder) == [f"{TOKENIZER}: missing"]


def test_a_shard_with_other_columns_is_named(tmp_path: Path) -> None:
    make_mixed(tmp_path, count=2, image_size=SIZE)
    path = tmp_path / "train/text-00000.arrow"
    table = pa.ipc.open_file(path).read_all()
    for changed, complaint in [
        (table.drop_columns(["prompt"]), "column prompt is missing, expected string"),
        (table.set_column(12, "num_tokens", table["num_tokens"].cast("int64")), "column num_tokens is int64"),
    ]:
        with pa.ipc.new_file(path, changed.schema) as writer:
            writer.write_table(changed)
        resign(tmp_path, "train/text-00000.arrow")
        with pytest.raises(UserError, match=rf"train/text-00000\.arrow: {complaint}"):
            ShardSet.open(tmp_path)


def resign(folder: Path, name: str) -> None:
    """Rewrite the manifest for a replaced shard, as someone who knows the format could."""
    from dataclasses import replace

    from shards.manifest import write_manifest

    manifest, path = load_manifest(folder), folder / name
    fresh = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    entries = tuple(replace(e, **fresh) if e.path == name else e for e in manifest.shards)
    write_manifest(folder, replace(manifest, shards=entries))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../x.json", "train-text-00000-00000000.pickle", "a.json"]
)
def test_a_tar_member_that_does_not_belong_is_refused_by_name(tmp_path: Path, name: str) -> None:
    make_mixed(tmp_path, count=2, image_size=SIZE, format="webdataset")
    add_member(tmp_path, tarfile.TarInfo(name))
    with pytest.raises(UserError, match=rf"train/text-00000\.tar: member '{name}' does not belong"):
        ShardSet.open(tmp_path)


def test_a_tar_link_is_refused(tmp_path: Path) -> None:
    make_mixed(tmp_path, count=2, image_size=SIZE, format="webdataset")
    link = tarfile.TarInfo("train-text-00000-00000002.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    add_member(tmp_path, link)
    with pytest.raises(UserError, match="does not belong"):
        ShardSet.open(tmp_path)


def add_member(folder: Path, member: tarfile.TarInfo) -> None:
    with tarfile.open(folder / "train/text-00000.tar", "a") as tar:
        tar.addfile(member, io.BytesIO())
    resign(folder, "train/text-00000.tar")


def test_pickled_arrays_are_not_unpickled(tmp_path: Path) -> None:
    """An npy member that claims to hold objects is refused, not executed."""
    make_mixed(tmp_path, count=2, image_size=SIZE, format="webdataset")
    path = tmp_path / "train/vqa-00000.tar"
    path.write_bytes(path.read_bytes().replace(b"'descr': '|u1'", b"'descr': '|O8'", 1))
    with pytest.raises(UserError, match="row 0"):
        ShardSet.open(tmp_path).rows("train", "vqa").read(0)


def test_shards_of_another_split_put_in_place_are_named(tmp_path: Path) -> None:
    make_mixed(tmp_path, count=2, image_size=SIZE)
    shutil.copy(tmp_path / "validation/text-00000.arrow", tmp_path / "train/text-00000.arrow")
    resign(tmp_path, "train/text-00000.arrow")
    assert any("is validation/text" in problem for problem in verify_folder(tmp_path))


def test_counts_that_explain_nothing_are_not_written(tmp_path: Path) -> None:
    from dataclasses import replace

    from shards.manifest import SourceCounts, write_manifest

    manifest = load_manifest(make_mixed(tmp_path, count=1, image_size=SIZE))
    for counts, complaint in [
        (SourceCounts(read=9, rejected={"blank": 1}, written=5), "9 rows read, 6 written or rejected"),
        (SourceCounts(read=5, rejected={}, written=5), "9 rows in the shards, 5 counted"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            write_manifest(tmp_path, replace(manifest, counts={"made-up": counts}))


def test_publish_replaces_shards_and_nothing_else(tmp_path: Path) -> None:
    def build(count: int) -> Path:
        return make_mixed(tmp_path / ".tmp-shards", count=count, image_size=SIZE)

    out = tmp_path / "shards"
    for count in (1, 3):
        publish(build(count), out)
        assert len(ShardSet.open(out).rows("train", "vqa")) == count
        assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="home: exists and is not a folder of shards"):
        publish(build(1), tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_rows_of_a_task_that_is_not_there(tmp_path: Path) -> None:
    make_folder(tmp_path, {("train", "text"): [make_row("text", "train", 0)]}, SIZE)
    with pytest.raises(UserError, match="no train/vqa rows; there are train/text"):
        ShardSet.open(tmp_path).rows("train", "vqa")


def test_hashing_refuses_other_columns() -> None:
    from shards.rows import row_hashes

    with pytest.raises(ValueError, match="column answer is missing, expected string"):
        row_hashes(make_batch([make_row("text", "train", 0)]).drop_columns(["answer"]))


def test_absurd_lengths_in_the_file_do_not_bring_the_process_down(tmp_path: Path) -> None:
    """Every 4 bytes of the record batch's own description set high, one after the other."""
    make_mixed(tmp_path, count=2, image_size=SIZE)
    path = tmp_path / "train/text-00000.arrow"
    kept, good = path.read_bytes(), read_all(tmp_path)
    footer = len(kept) - 10 - int.from_bytes(kept[-10:-6], "little")
    ids = kept.index(b"pubmedqa/")  # the first bytes of data
    for place in [*range(ids - 900, ids, 4), *range(footer, len(kept), 16)]:
        path.write_bytes(kept[:place] + b"\xff\xff\xff\x9a" + kept[place + 4 :])
        outcome = outcome_of(read_all, tmp_path)
        assert outcome == good or "train/text-00000.arrow" in outcome
