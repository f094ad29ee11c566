"""The shard format: what is written comes back, in both formats, however it arrived."""

import random
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_factory import SOURCES, finish_folder, make_batch, make_folder, make_row, pictures_of

from shards import write
from shards.compare.check import verify_folder
from shards.pictures import CODECS, DRAWN, UNDERSTOOD
from shards.read import ShardSet
from shards.rows import row_hashes
from shards.schema import CONTENT_SCHEMA, RowBlock, Sample
from shards.write import write_pictures, write_shards

SIZE = 8
FORMATS = ("arrow", "webdataset")
PIXELS = {f"{n:064x}": np.random.default_rng(n).integers(0, 256, (SIZE, SIZE, 3), np.uint8) for n in range(5)}
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant"]),
        "text": st.text(),
        "pictures": st.lists(st.sampled_from([*PIXELS]), max_size=3),
    }
)


@st.composite
def rows(draw: st.DrawFn) -> dict:
    """A row with anything in its texts, several spans, messages and pictures, perhaps codes."""
    length = draw(st.integers(1, 30))
    cuts = sorted(draw(st.sets(st.integers(0, length), max_size=6)))
    kinds = draw(st.lists(st.integers(0, 1), min_size=3, max_size=3))
    ends = zip(cuts[::2], cuts[1::2], kinds, strict=False)
    row = make_row(
        "text",
        "train",
        draw(st.integers(0, 1000)),
        sample_id=draw(st.text(min_size=1)),
        source=draw(st.text()),
        messages=draw(st.lists(MESSAGE, max_size=4)),
        prompt=draw(st.text()),
        answer=draw(st.text()),
        input_ids=draw(st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length)),
        supervised=[{"start": lo, "end": hi, "kind": kind} for lo, hi, kind in ends],
        num_tokens=length,
        image_tokens=draw(st.lists(st.integers(0, 2**16 - 1), max_size=5)),
    )
    return row | {"pixels": PIXELS}


def columns(row: dict) -> dict:
    return {name: row[name] for name in CONTENT_SCHEMA.names}


def as_row(sample: Sample) -> dict:
    row = {name: getattr(sample, name, None) for name in CONTENT_SCHEMA.names}
    row["messages"] = [{**vars(message), "pictures": [*message.pictures]} for message in sample.messages]
    row["supervised"] = [
        {"start": lo, "end": hi, "kind": kind} for lo, hi, kind in sample.supervised.tolist()
    ]
    row |= {name: getattr(sample, name).tolist() for name in ("input_ids", "image_tokens")}
    return {**row, "num_tokens": len(row["input_ids"])}


def pictures(row: dict, role: str) -> list[str]:
    return [name for message in row["messages"] if message["role"] == role for name in message["pictures"]]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some=st.lists(rows(), min_size=1, max_size=5), codec=st.sampled_from([*CODECS]))
def test_any_row_comes_back(some: list[dict], codec: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    for format in FORMATS:
        place = tmp_path_factory.mktemp(format)
        folder = make_folder(place, {("train", "text"): some}, SIZE, format, codec=codec)
        task = ShardSet.open(folder).rows("train", "text")
        samples = [task.read(i) for i in range(len(task))]
        assert [as_row(sample) for sample in samples] == [columns(row) for row in some]
        for sample, row in zip(samples, some, strict=True):
            assert (sample.understood, sample.drawn) == (pictures(row, "user"), pictures(row, "assistant"))
            np.testing.assert_equal([*sample.images], [PIXELS[name] for name in sample.understood])
        assert task.num_tokens.tolist() == [row["num_tokens"] for row in some]
        supervised = [sum(s["end"] - s["start"] for s in row["supervised"]) for row in some]
        assert task.supervised_tokens.tolist() == supervised
        assert task.num_tokens.dtype == task.supervised_tokens.dtype == np.int32
        assert task.image_tokens.tolist() == [len(row["image_tokens"]) for row in some]
        assert task.understood.tolist() == [len(pictures(row, "user")) for row in some]
        assert task.column("sample_id").to_pylist() == [row["sample_id"] for row in some]
        assert task.column("source").to_pylist() == [row["source"] for row in some]
        unchecked = [*task.unchecked()]
        assert [as_row(sample) for sample in unchecked] == [columns(row) for row in some]
        assert not any(sample.images for sample in unchecked)
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


def said(*messages: tuple[str, str, str]) -> list[dict]:
    """Of role, text and the last digits of its pictures."""
    return [{"role": r, "text": t, "pictures": [f"{int(n):064x}" for n in own]} for r, t, own in messages]


def test_every_column_is_in_the_hash_and_so_is_the_place_of_each_picture_and_text() -> None:
    row = make_row("edit", "train", 1, SIZE, messages=said(("user", "a", "12"), ("assistant", "bc", "3")))
    ids, spans, codes = row["input_ids"], row["supervised"], row["image_tokens"]
    changes = {
        **{name: row[name] + "x" for name in CONTENT_SCHEMA.names if isinstance(row[name], str)},
        "messages": said(("user", "ab", "12"), ("assistant", "c", "3")),
        "input_ids": [*ids[:-1], 9],
        "supervised": [{"start": 0, "end": 1, "kind": 1}],
        "num_tokens": row["num_tokens"] + 1,
        "image_tokens": [*codes[:-1], 16384],
    }
    assert changes.keys() == set(CONTENT_SCHEMA.names)
    changed = [row, *({**row, name: value} for name, value in changes.items()), {**row, "image_tokens": []}]
    changed += [{**row, "supervised": some} for some in ([], [*spans, *spans], [{**spans[0], "kind": 0}])]
    conversations = [
        said(("user", "a", "1"), ("assistant", "bc", "23")),
        said(("user", "a", "21"), ("assistant", "bc", "3")),
        said(("user", "a", "12"), ("assistant", "bc", "4")),
        said(("user", "a", "1"), ("user", "", "2"), ("assistant", "bc", "3")),
        said(("user", "", "1"), ("user", "a", "2"), ("assistant", "bc", "3")),
        said(("use", "ra", "12"), ("assistant", "bc", "3")),
        said(("user", "a", "12"), ("assistant", "bc", "3"), ("assistant", "", "")),
        [],
    ]
    changed += [{**row, "messages": messages} for messages in conversations]
    changed += [{**row, "prompt": row["prompt"] + "x", "answer": row["answer"] + "y"}]
    changed += [{**row, "prompt": row["prompt"] + "xy"}]
    hashes = row_hashes(make_batch(changed))
    assert len(set(hashes.tolist())) == len(hashes)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows and pictures of a record batch in this test."""
    monkeypatch.setattr(write, "BATCH_ROWS", 32)
    monkeypatch.setattr(write, "BATCH_PICTURES", 32)
    return 32


@pytest.mark.parametrize("format", FORMATS)
def test_files_do_not_depend_on_how_rows_arrive(tmp_path: Path, format: str, small_batches: int) -> None:
    some = [make_row("vqa", "train", key, SIZE, shown=key % 3) for key in range(150)]
    whole, dice = make_batch(some), random.Random(0)
    cuts = [0, *sorted(dice.sample(range(1, 150), 9)), 150]
    pieces = [whole.slice(lo, hi - lo) for lo, hi in pairwise(cuts)]
    of_polars, written = [pl.from_arrow(batch).to_arrow().to_batches()[0] for batch in pieces], []
    for number, batches in enumerate(([whole], pieces, of_polars)):
        out, limit = tmp_path / str(number), int(2.5 * small_batches * whole.nbytes / len(whole))
        entries = write_shards(
            iter(batches), out, split="train", task="vqa", format=format, shard_bytes=limit
        )
        held = pictures_of(some, out, format)
        finish_folder(out, entries, SIZE, format, held)
        written.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert written[0] == written[1] == written[2]
    assert [entry.rows for entry in entries] == [2 * small_batches, 2 * small_batches, 22]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("codec", CODECS)
def test_a_picture_is_there_once_and_read_from_whichever_file_holds_it(
    tmp_path: Path, format: str, codec: str, small_batches: int
) -> None:
    """70 pictures in three files, each shown by three rows."""
    keys = list(range(70))
    row = {key: make_row("edit", "train", key, SIZE) for key in keys}
    asked = [{**row[key], "sample_id": f"{key}/{question}"} for key in keys for question in range(3)]
    entries = write_shards([make_batch(asked)], tmp_path, split="train", task="edit", format=format)
    coded = [
        (name, CODECS[codec].encode(row[key]["pixels"][name]))
        for key in keys
        for name in pictures(row[key], "user")
    ]
    limit = 32 * max(len(data) for _, data in coded)
    held = write_pictures(coded, tmp_path, UNDERSTOOD, codec, format, limit)
    assert [entry.pictures for entry in held] == [32, 32, 6]
    finish_folder(tmp_path, entries, SIZE, format, held, codec)
    shards = ShardSet.open(tmp_path)
    read = shards.rows("train", "edit")
    for at in (0, 100, 209, 98):
        (image,) = read.read(at).images
        assert image.tobytes() == asked[at]["pixels"][pictures(asked[at], "user")[0]].tobytes()
    assert len(read.block(np.arange(len(read))).images) == len(asked)
    assert pictures(asked[0], "assistant")[0] not in shards.pictures[DRAWN]  # their originals were not kept


def test_plain_webdataset_reads_the_tars(tmp_path: Path) -> None:
    import webdataset as wds

    def read(name: str, *how: str) -> list[dict[str, Any]]:
        return list(wds.WebDataset(str(folder / name), shardshuffle=False).decode(*how))

    for codec, suffix in {"webp": "webp", "raw": "bin"}.items():
        folder = make_folder(
            tmp_path / codec,
            {("train", "edit"): [make_row("edit", "train", key, SIZE) for key in range(3)]},
            SIZE,
            "webdataset",
            codec=codec,
        )
        samples, images = read("train/edit-00000.tar"), read("pictures/understanding-00000.tar", "rgb8")
        for key, sample, image in zip(range(3), samples, images, strict=True):
            row = make_row("edit", "train", key, SIZE)
            (name,) = pictures(row, "user")
            assert {n: row[n] for n in ("prompt", "input_ids", "messages")}.items() <= sample["json"].items()
            assert sample["image_tokens.npy"].tolist() == row["image_tokens"]
            assert (image["__key__"], image["json"]["image_sha256"]) == (name, name)
            assert bytes(image[suffix]) == row["pixels"][name].tobytes()


@pytest.mark.parametrize("format", FORMATS)
def test_arrays_are_views_into_the_mapped_file(tmp_path: Path, format: str) -> None:
    rows = [make_row("edit", "train", key, SIZE) for key in range(2)]
    make_folder(tmp_path, {("train", "edit"): rows}, SIZE, format, codec="raw")
    sample = ShardSet.open(tmp_path).rows("train", "edit").read(1)
    of_row = (sample.image_tokens, *([sample.input_ids] if format == "arrow" else []))
    for file, array in [*(("/edit-", array) for array in of_row), ("/understanding-", sample.images[0])]:
        assert not array.flags.writeable
        address, maps = array.__array_interface__["data"][0], Path("/proc/self/maps").read_text().splitlines()
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps if file in line]
        assert any(low <= address < high for low, high in ranges)


@pytest.mark.parametrize("format", FORMATS)
def test_writing_holds_a_few_batches_however_many_rows(
    tmp_path: Path, format: str, small_batches: int
) -> None:
    held = []

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(20):
            held.append(pa.total_allocated_bytes())
            long = {"input_ids": [1] * 7000, "num_tokens": 7000}
            keys = range(number * 16, number * 16 + 16)
            yield make_batch([make_row("text", "train", key, **long) for key in keys])

    before = pa.total_allocated_bytes()
    write_shards(batches(), tmp_path, split="train", task="text", format=format)
    assert max(held) - before < 3 * small_batches * 4 * 7000


@pytest.mark.parametrize("format", FORMATS)
def test_writing_holds_a_few_pictures_however_many_there_are(
    tmp_path: Path, format: str, small_batches: int
) -> None:
    size, held = 30_000, []

    def coded() -> Iterator[tuple[str, bytes]]:
        for number in range(400):
            held.append(pa.total_allocated_bytes() + tracemalloc.get_traced_memory()[0])
            yield f"{number:064x}", bytes(size)

    tracemalloc.start()
    write_pictures(coded(), tmp_path, UNDERSTOOD, "raw", format)
    tracemalloc.stop()
    assert max(held) - held[0] < 4 * small_batches * size


_STRINGS = pa.list_(pa.string())
_MESSAGES = pa.list_(pa.struct({"role": pa.string(), "text": pa.string(), "pictures": _STRINGS}))
NULLABLE = pa.schema(
    [(field.name, _MESSAGES if field.name == "messages" else field.type) for field in CONTENT_SCHEMA]
)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"task": "vqa"}, "train-1: is not of task text"),
        ({"split": "test"}, "train-1: is not of split train"),
        ({"num_tokens": 3}, "train-1: num_tokens is not the length"),
        (
            {"supervised": [{"start": 0, "end": 99, "kind": 0}]},
            "train-1: a supervised span is empty or outside",
        ),
        (
            {"supervised": [{"start": 2, "end": 2, "kind": 0}]},
            "train-1: a supervised span is empty or outside",
        ),
        ({"supervised": [{"start": 0, "end": 2, "kind": 2}]}, "train-1: the kind of a supervised span"),
        *(
            (
                {
                    "messages": [
                        *said(("user", "a", "1")),
                        {"role": "user", "text": "", "pictures": ["1", name]},
                    ]
                },
                "train-1: the name of a picture is no sha256",
            )
            for name in (None, "", "a.png", f"{10:064X}", f"{1:065x}")
        ),
        *(({column: None}, column) for column in ("prompt", "input_ids", "sample_id", "messages")),
        ({"messages": [{"role": "user", "text": None, "pictures": []}]}, "field 'text'"),
    ],
)
def test_a_row_that_contradicts_itself_is_not_written(tmp_path: Path, changes: dict, complaint: str) -> None:
    rows = [make_row("text", "train", 0), {**make_row("text", "train", 1), **changes}]
    batch = pa.RecordBatch.from_pylist(rows, NULLABLE)
    with pytest.raises(ValueError, match=complaint):
        write_shards([batch], tmp_path, split="train", task="text")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("task", SOURCES)
def test_rows_read_as_a_block_are_those_read_alone(
    tmp_path: Path, task: str, format: str, small_batches: int
) -> None:
    """In any order, twice too, from several record batches and files; with no, one or several pictures."""
    count = small_batches + 6
    rows = [make_row(task, "train", key, SIZE, shown=key % 4, drawn=1 + key % 2) for key in range(count)]
    make_folder(tmp_path, {("train", task): rows}, SIZE, format, shard_bytes=1)
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
        np.testing.assert_equal([*value], [*vars(plain)[name]], err_msg=name)
    assert block.images_R.tolist() == [len(pictures(rows[index], "user")) for index in indices]
    assert read.num_tokens.sum() == sum(entry.tokens for entry in shards.manifest.shards)
    assert read.supervised_tokens.sum() == sum(entry.supervised_tokens for entry in shards.manifest.shards)
    for index in (-1, count):
        with pytest.raises(IndexError):
            read.read(index)
    with pytest.raises(IndexError):
        read.block(np.array([0, count]))
