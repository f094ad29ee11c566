"""The shard format: what is written comes back, in both formats, however it arrived."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_factory import finish_folder, make_batch, make_folder, make_mixed, make_row

from shards.check import verify_folder
from shards.read import ShardSet
from shards.rows import row_hashes
from shards.schema import CONTENT_SCHEMA, RowBlock
from shards.write import BATCH_ROWS, write_shards

SIZE = 8
FORMATS = ("arrow", "webdataset")


@st.composite
def rows(draw: st.DrawFn) -> dict:
    """A text row with anything in its texts, several spans and turns, perhaps an image and codes."""
    length = draw(st.integers(1, 30))
    cuts = sorted(draw(st.sets(st.integers(0, length), max_size=6)))
    spans = [{"start": lo, "end": hi} for lo, hi in zip(cuts[::2], cuts[1::2], strict=False)]
    turns = st.fixed_dictionaries({"user": st.text(), "assistant": st.text()})
    return make_row(
        "text",
        "train",
        draw(st.integers(0, 1000)),
        sample_id=draw(st.text(min_size=1)),
        source=draw(st.text()),
        image_sha256=draw(st.none() | st.text()),
        history=draw(st.lists(turns, max_size=3)),
        prompt=draw(st.text()),
        answer=draw(st.text()),
        input_ids=draw(st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length)),
        supervised=spans,
        num_tokens=length,
        image=draw(st.none() | st.binary(min_size=3 * SIZE**2, max_size=3 * SIZE**2)),
        image_tokens=draw(st.none() | st.lists(st.integers(0, 2**16 - 1), max_size=5)),
    )


def as_row(sample: object) -> dict:
    row = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(sample).items()}
    row["history"] = [{"user": user, "assistant": assistant} for user, assistant in row["history"]]
    row["supervised"] = [{"start": start, "end": end} for start, end in row["supervised"]]
    row["image"] = None if row["image"] is None else sample.image.tobytes()
    return {**row, "num_tokens": len(row["input_ids"])}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some=st.lists(rows(), min_size=1, max_size=5))
def test_any_row_comes_back(some: list[dict], tmp_path_factory: pytest.TempPathFactory) -> None:
    for format in FORMATS:
        folder = make_folder(tmp_path_factory.mktemp(format), {("train", "text"): some}, SIZE, format)
        task = ShardSet.open(folder).rows("train", "text")
        samples = [task.read(i) for i in range(len(task))]
        assert [as_row(sample) for sample in samples] == some
        assert task.num_tokens.tolist() == [row["num_tokens"] for row in some]
        supervised = [sum(s["end"] - s["start"] for s in row["supervised"]) for row in some]
        assert task.supervised_tokens.tolist() == supervised
        assert task.num_tokens.dtype == task.supervised_tokens.dtype == np.int32
        assert task.column("sample_id").to_pylist() == [row["sample_id"] for row in some]
        assert task.column("source").to_pylist() == [row["source"] for row in some]
        assert [as_row(sample) for sample in task.unchecked()] == some
        assert verify_folder(folder) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some=st.lists(rows(), min_size=2, max_size=6), data=st.data())
def test_a_row_has_one_hash_in_every_batch_and_slice(some: list[dict], data: st.DataObject) -> None:
    whole = make_batch(some)
    hashes = row_hashes(whole).tolist()
    part = whole.slice(data.draw(st.integers(0, len(some) - 1)))
    assert [row_hashes(make_batch([row]))[0] for row in some] == hashes
    expected = [*hashes, *hashes[-len(part) :]]
    assert row_hashes(pa.Table.from_batches([whole, part])).tolist() == expected
    assert row_hashes(part).tolist() == hashes[-len(part) :]


def test_every_column_is_in_the_hash() -> None:
    row = make_row("t2i", "train", 1, SIZE, history=[{"user": "a", "assistant": "bc"}])
    changes = {
        **{name: row[name] + "x" for name in CONTENT_SCHEMA.names if isinstance(row[name], str)},
        "history": [{"user": "ab", "assistant": "c"}],
        "input_ids": [*row["input_ids"][:-1], 9],
        "supervised": [{"start": 0, "end": 1}],
        "num_tokens": row["num_tokens"] + 1,
        "image": row["image"][:-1] + bytes([row["image"][-1] ^ 1]),
        "image_tokens": [*row["image_tokens"][:-1], 16384],
    }
    assert changes.keys() == set(CONTENT_SCHEMA.names)
    changed = [row, *({**row, name: value} for name, value in changes.items())]
    changed += [{**row, name: None} for name in ("image_sha256", "image", "image_tokens")]
    moved = {**row, "prompt": row["prompt"] + row["answer"][:1], "answer": row["answer"][1:] + "y"}
    hashes = row_hashes(make_batch([*changed, moved, {**row, "image_sha256": ""}]))
    assert len(set(hashes.tolist())) == len(hashes)


@pytest.mark.parametrize("format", FORMATS)
def test_files_do_not_depend_on_how_rows_arrive(tmp_path: Path, format: str) -> None:
    some = [make_row("vqa", "train", key, SIZE, image_sha256=None if key % 3 else "x") for key in range(150)]
    whole, dice = make_batch(some), random.Random(0)
    cuts = [0, *sorted(dice.sample(range(1, 150), 9)), 150]
    pieces = [whole.slice(lo, hi - lo) for lo, hi in pairwise(cuts)]
    of_polars, written = [pl.from_arrow(batch).to_arrow().to_batches()[0] for batch in pieces], []
    for number, batches in enumerate(([whole], pieces, of_polars)):
        out, options = tmp_path / str(number), {"image_size": SIZE, "format": format, "shard_bytes": 40_000}
        entries = write_shards(iter(batches), out, split="train", task="vqa", **options)
        finish_folder(out, entries, SIZE, format)
        written.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert written[0] == written[1] == written[2]
    assert len(entries) == 3
    assert sum(entry.rows for entry in entries) == 150


def test_plain_webdataset_reads_the_tars(tmp_path: Path) -> None:
    import webdataset as wds

    path = make_mixed(tmp_path, count=3, image_size=SIZE, format="webdataset") / "train" / "t2i-00000.tar"
    samples = list(wds.WebDataset(str(path), shardshuffle=False).decode())
    for key, sample in zip(range(3), samples, strict=True):
        row = make_row("t2i", "train", key, SIZE)
        assert {name: row[name] for name in ("prompt", "input_ids")}.items() <= sample["json"].items()
        assert sample["image.npy"].shape == (SIZE, SIZE, 3)
        assert sample["image.npy"].tobytes() == row["image"]
        assert sample["image_tokens.npy"].tolist() == row["image_tokens"]


@pytest.mark.parametrize("format", FORMATS)
def test_arrays_are_views_into_the_mapped_file(tmp_path: Path, format: str) -> None:
    make_mixed(tmp_path, count=2, image_size=SIZE, format=format)
    sample = ShardSet.open(tmp_path).rows("train", "t2i").read(1)
    for array in (sample.image, sample.image_tokens, *([sample.input_ids] if format == "arrow" else [])):
        assert not array.flags.writeable
        address, maps = array.__array_interface__["data"][0], Path("/proc/self/maps").read_text().splitlines()
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps if "/t2i-" in line]
        assert any(low <= address < high for low, high in ranges)


@pytest.mark.parametrize("format", FORMATS)
def test_writing_holds_a_few_batches_however_many_rows(tmp_path: Path, format: str) -> None:
    held = []

    def batches():
        for number in range(20):
            held.append(pa.total_allocated_bytes())
            yield make_batch([make_row("vqa", "train", number * 16 + key, 96) for key in range(16)])

    before, rows_bytes = pa.total_allocated_bytes(), 64 * 3 * 96**2
    write_shards(batches(), tmp_path, split="train", task="vqa", image_size=96, format=format)
    assert max(held) - before < 3 * rows_bytes


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"task": "vqa"}, "train-1: is not of task text"),
        ({"split": "test"}, "train-1: is not of split train"),
        ({"num_tokens": 3}, "train-1: num_tokens is not the length"),
        ({"image": b"abc"}, "train-1: image is not 8×8×3 bytes"),
        ({"supervised": [{"start": 0, "end": 99}]}, "train-1: a supervised span is empty or outside"),
        ({"supervised": [{"start": 2, "end": 2}]}, "train-1: a supervised span is empty or outside"),
        *(({column: None}, column) for column in ("prompt", "input_ids", "sample_id", "history")),
    ],
)
def test_a_row_that_contradicts_itself_is_not_written(tmp_path: Path, changes: dict, complaint: str) -> None:
    nullable = pa.schema([field.with_nullable(True) for field in CONTENT_SCHEMA])
    rows = [make_row("text", "train", 0), {**make_row("text", "train", 1), **changes}]
    batch = pa.RecordBatch.from_pylist(rows, nullable)
    with pytest.raises(ValueError, match=complaint):
        write_shards([batch], tmp_path, split="train", task="text", image_size=SIZE)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("task", ["text", "vqa", "t2i"])
def test_rows_read_as_a_block_are_those_read_alone(tmp_path: Path, task: str, format: str) -> None:
    """In any order, twice too, and from several record batches and files."""
    count = BATCH_ROWS[task] + 6
    rows = [make_row(task, "train", k, SIZE, image_sha256=None if k % 2 else "ab") for k in range(count)]
    make_folder(tmp_path, {("train", task): rows}, SIZE, format=format, shard_bytes=1)
    shards = ShardSet.open(tmp_path)
    read = shards.rows("train", task)
    ends = np.cumsum([entry.rows for entry in shards.manifest.shards])
    assert (len(ends), ends[-1]) == (2, count)
    for index in (0, ends[0] - 1, ends[0], count - 1):
        assert read.read(index).sample_id == rows[index]["sample_id"]
    indices = np.array([count - 1, 0, 3, count - 2, 3])
    block, plain = read.block(indices), RowBlock.of([read.read(index) for index in indices.tolist()])
    assert len(block) == len(indices)
    for name, value in vars(block).items():
        for one, other in zip(value, vars(plain)[name], strict=True):
            flat = [np.ravel(array) for array in (one, other)]  # a picture may be a row of bytes
            np.testing.assert_array_equal(*flat, err_msg=name)
    assert read.num_tokens.sum() == sum(entry.tokens for entry in shards.manifest.shards)
    assert read.supervised_tokens.sum() == sum(entry.supervised_tokens for entry in shards.manifest.shards)
    for index in (-1, count):
        with pytest.raises(IndexError):
            read.read(index)
    with pytest.raises(IndexError):
        read.block(np.array([0, count]))
