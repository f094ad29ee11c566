"""Builds that append: only what is new is read, encoded and written; what was there stays as it is."""

import io
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from commands import invoke, python
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from raw_data import build_command, files_of, run_well, skipped
from test_splits import ROW, frame

from janus.prompts import SPLITS
from pipelines.cli import main as pipelines
from pipelines.stages.splits import assign_splits
from pipelines.tables import read_table
from shards.cli import main as shards
from shards.compare.check import verify_folder
from shards.compare.diff import differences
from shards.manifest import load_manifest
from shards.read import ShardSet

ROOT_FILES = ("manifest.json", "pictures.parquet")
OPTIONS = ("--validation-fraction", 0.3, "--max-length", 2048)


def scene(number: int, kind: str = "PNG", **options: Any) -> bytes:
    """A picture unlike that of any other number."""
    rng, data = np.random.default_rng(number), io.BytesIO()
    image = Image.new("L", (120, 120), int(rng.integers(60)))
    for x, y, width, height in (rng.random((40, 4)) * [120, 120, 24, 24]).tolist():
        place = (x - width, y - height, x + width, y + height)
        ImageDraw.Draw(image).ellipse(place, fill=int(rng.integers(256)))
    image.convert("RGB").save(data, kind, **options)
    return data.getvalue()


def ask(question: str, *pictures: str, answer: str | None = None) -> dict[str, Any]:
    return {
        "query": f"{'<image>' * len(pictures)}{question}",
        "response": answer or f"Yes: {question}",
        "images": pictures,
    }


def draw(caption: str, picture: str) -> dict[str, Any]:
    parts = [{"type": "image", "image": picture}]
    return {"messages": [{"role": "user", "content": caption}, {"role": "assistant", "content": parts}]}


class Site:
    """A folder of data, built in work/ beside it."""

    def __init__(self, root: Path, tokenizer: Path, **source: Any) -> None:
        self.root, self.data, self.shards = root, root / "data", root / "shards"
        self.command = build_command(self.data, root, tokenizer, "--workers", 1, *OPTIONS)
        self.data.mkdir()
        entry = {"path": "*.jsonl", **source}
        (self.data / "sources.yaml").write_text(json.dumps({"sources": {"mine": entry}}))

    def add(self, name: str, *rows: dict[str, Any], **pictures: bytes) -> None:
        """Append rows to a file, and pictures to the folder."""
        for stem, data in pictures.items():
            (self.data / f"{stem}.png").write_bytes(data)
        with (self.data / name).open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def build(self, *more: object) -> str:
        return run_well(*self.command, *more)

    def sides(self) -> dict[str, str]:
        """Split of each row by its key."""
        rows = pl.scan_ipc(f"{self.shards}/[tv]*/*.arrow").select("source_key", "split")
        return dict(rows.collect().iter_rows())

    def rejected(self) -> set[tuple[str, str]]:
        rows = read_table(self.root / "work/rejects.arrow").to_pylist()
        return {(row["source_key"], row["reason"]) for row in rows}

    def ingested(self, generation: str) -> list[str]:
        return read_table(self.root / "work" / generation / "ingest/mine.rows.arrow")[
            "source_key"
        ].to_pylist()


@pytest.fixture
def site(tmp_path: Path, sample_data: Path) -> Site:
    return Site(tmp_path, sample_data / "tokenizer")


def kept(before: dict[str, bytes], folder: Path) -> bool:
    """Whether the files of rows and pictures are as before, further ones aside."""
    now = files_of(folder)
    return all(now.get(name) == data for name, data in before.items() if name not in ROOT_FILES)


def check_generations(folder: Path, count: int) -> None:
    """The folder is whole, each file of one generation, and their counts are the folder's."""
    assert verify_folder(folder) == []
    manifest = load_manifest(folder)
    assert len(manifest.generations) == count
    named = [path for generation in manifest.generations for path in generation.files]
    assert sorted(named) == sorted(entry.path for entry in manifest.files)
    for source, total in manifest.counts.items():
        parts = [g.counts[source] for g in manifest.generations if source in g.counts]
        assert total.read == sum(part.read for part in parts) == total.written + sum(total.rejected.values())
        assert total.written == sum(part.written for part in parts)


def test_only_what_is_new_is_read_encoded_and_written(site: Site) -> None:
    questions = [ask(f"Is {i} even?") for i in range(40)]
    seen = [ask(f"What is in {i}?", f"p{i}.png") for i in range(6)]
    site.add("a.jsonl", *questions, *seen, **{f"p{i}": scene(i) for i in range(6)})
    site.add("drawn.jsonl", draw("A scene", "p6.png"), p6=scene(6))
    site.build()
    check_generations(site.shards, 1)
    before, sides = files_of(site.shards), site.sides()
    inodes = {path.stat().st_ino for path in site.shards.glob("*/*.arrow")}

    more = [ask("Is 41 even?"), ask("And in the first?", "p0.png"), ask("What is in 7?", "p7.png")]
    site.add("a.jsonl", *more, p7=scene(7))
    site.add("b.jsonl", ask("Is it new?"), ask("Again", "p7.png"))
    site.add("drawn.jsonl", draw("Another", "p8.png"), draw("The first", "p6.png"), p8=scene(8))
    log = site.build()
    assert "ingest: mine goes on with" in log
    assert skipped(log) == ["tokenize", "images", "vq"]
    assert "write: 7 rows are appended to 47 that stay as they are" in log
    new = [
        *(f"a.jsonl:{n}" for n in (47, 48, 49)),
        "b.jsonl:1",
        "b.jsonl:2",
        "drawn.jsonl:2",
        "drawn.jsonl:3",
    ]
    assert sorted(site.ingested("gen-001")) == sorted(new)
    work = site.root / "work/gen-001"
    assert read_table(work / "tokenize/mine-00000.arrow").num_rows == 7
    assert {
        kind: read_table(work / f"images/{kind}.index.arrow").num_rows
        for kind in ("understanding", "generation")
    } == {"understanding": 1, "generation": 1}
    assert read_table(work / "vq/codes.arrow").num_rows == 1

    assert kept(before, site.shards)
    assert inodes < {path.stat().st_ino for path in site.shards.glob("*/*.arrow")}  # linked, not written
    now = site.sides()
    assert sides.items() < now.items()
    assert now.keys() - sides.keys() == set(new)
    assert now["a.jsonl:48"] == sides["a.jsonl:41"]
    check_generations(site.shards, 2)

    whole = files_of(site.shards)
    assert skipped(site.build()) == ["tokenize", "images", "vq", "write"]
    assert files_of(site.shards) == whole
    site.build("--out", site.root / "fresh", "--work", site.root / "other")
    lines = list(differences(ShardSet.open(site.root / "fresh"), ShardSet.open(site.shards)))
    assert [line for line in lines if " split " not in line] == []  # the same rows, bit for bit


def test_new_rows_go_where_what_they_share_has_gone(site: Site) -> None:
    numbers = range(30)
    site.add(
        "a.jsonl",
        *(ask(f"What is {i}?", f"p{i}.png") for i in numbers),
        **{f"p{i}": scene(i) for i in numbers},
    )
    site.build()
    sides = {i: site.sides()[f"a.jsonl:{i + 1}"] for i in numbers}
    first = {side: next(i for i in numbers if sides[i] == side) for side in ("train", "validation")}
    copies = {f"c{i}": scene(i, "JPEG", quality=40) for i in numbers}
    site.add("b.jsonl", *(ask(f"What else is {i}?", f"c{i}.png") for i in numbers), **copies)
    repeat, both = ask("What is 3?", "p3.png"), [f"p{i}.png" for i in first.values()]
    site.add("c.jsonl", repeat, ask("Compare", *both), ask("what IS  5?"))
    site.build()
    now = site.sides()
    assert {i: now[f"b.jsonl:{i + 1}"] for i in numbers} == sides  # near-duplicates
    assert site.rejected() == {("c.jsonl:1", "duplicate"), ("c.jsonl:2", "leak")}
    assert now["c.jsonl:3"] == sides[5]  # the same question
    invoke(shards, "verify", site.shards, "--leaks")
    check_generations(site.shards, 2)
    assert load_manifest(site.shards).generations[1].counts["mine"].rejected == {"duplicate": 1, "leak": 1}


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, max_size=60), st.integers(0, 60), st.sampled_from([0.05, 0.3]), st.randoms())
def test_old_rows_stay_and_new_ones_never_share_with_another_side(rows, count, fraction, random) -> None:
    for row in rows:
        row["split"] = random.choice(SPLITS) if row["source"] == "roco" else None
    everything = frame(rows).unique("sample_id", keep="first", maintain_order=True)
    old = assign_splits(everything.head(count), 0, fraction)
    pinned = pl.concat([old["side"], pl.Series([None] * (everything.height - old.height), dtype=pl.String)])
    at = pl.int_range(pl.len())
    placed = assign_splits(everything.with_columns(old=at < old.height, pinned=pinned), 0, fraction)
    assert placed["side"].head(old.height).to_list() == old["side"].to_list()
    assert placed["reason"].head(old.height).to_list() == old["reason"].to_list()
    kept = placed.drop_nulls("side")
    assert kept["sha256"].is_unique().all()
    for key in ("image_sha256", "questions"):
        held = kept.explode(key).drop_nulls(key).group_by(key).agg(pl.col("side").n_unique())
        assert (held["side"] == 1).all()


def test_validation_grows_with_the_rows(site: Site) -> None:
    """Many small appends, each too small for its share of validation rows."""

    def side_counts(placed: pl.DataFrame) -> dict[str, int]:
        return dict(placed.group_by("side").len().iter_rows())

    rows = [{"source_key": f"{i}", "questions": [f"What is {i}?"]} for i in range(400)]
    placed = assign_splits(frame(rows[:100]), 0, 0.05)
    for end in range(110, 401, 10):
        pinned = [*placed["side"], *[None] * (end - placed.height)]
        now = frame(rows[:end]).with_columns(
            old=pl.Series(i < placed.height for i in range(end)), pinned=pl.Series(pinned, dtype=pl.String)
        )
        placed = assign_splits(now, 0, 0.05)
    assert side_counts(placed) == {"train": 380, "validation": 20}


KILL = """
import os, signal, sys
import pipelines.stages.write as write
from pipelines.cli import main
publish, after = write.publish, sys.argv.pop(1) == "after"
def killed(*folders):
    if after:
        publish(*folders)
    os.kill(os.getpid(), signal.SIGKILL)
write.publish = killed
main()
"""


@pytest.mark.parametrize("when", ["before", "after", "between"])
def test_a_killed_append_leaves_the_old_shards_and_is_made_up_for(site: Site, when: str) -> None:
    site.add("a.jsonl", *(ask(f"Is {i} even?") for i in range(40)))
    site.build()
    before, sides = files_of(site.shards), site.sides()
    site.add("a.jsonl", *(ask(f"Is {i} odd?") for i in range(40)))
    python("-c", KILL, "after" if when == "after" else "before", *site.command, code=-signal.SIGKILL)
    if when == "between":  # the two renames of publishing
        site.shards.rename(site.root / ".old-shards")
    elif when == "before":
        assert files_of(site.shards) == before
        assert verify_folder(site.shards) == []
    site.build()
    assert kept(before, site.shards)
    assert sides.items() < site.sides().items()
    check_generations(site.shards, 2)
    assert skipped(site.build())[-1] == "write"
    assert {path.name for path in site.root.iterdir()} == {"data", "work", "shards"}


def rewrite(site: Site) -> None:
    path = site.data / "a.jsonl"
    path.write_text(path.read_text().replace("Is 7 even?", "Is 7 odd ?") + json.dumps(ask("New")) + "\n")


def remove(site: Site) -> None:
    (site.data / "b.jsonl").unlink()


def go_on_in_a_line(site: Site) -> None:
    path = site.data / "b.jsonl"
    path.write_text(path.read_text().removesuffix("\n"))
    site.build()
    path.write_text(path.read_text() + " \n" + json.dumps(ask("New")) + "\n")


def find_a_picture(site: Site) -> None:
    site.add("b.jsonl", ask("New"), lost=scene(1))


CHANGES = {
    rewrite: "a.jsonl has changed, not only grown by lines, so everything is read again",
    remove: "b.jsonl is gone, so",
    go_on_in_a_line: "b.jsonl has changed, not only grown",
    find_a_picture: "lost.png, which was missing, has come",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_any_other_change_is_a_whole_new_build(site: Site, change: Any) -> None:
    site.add("a.jsonl", *(ask(f"Is {i} even?") for i in range(40)))
    site.add("b.jsonl", ask("Something"), ask("What is it?", "lost.png"))
    site.build()
    site.add("a.jsonl", ask("Is it appended?"))
    site.build()
    change(site)
    assert CHANGES[change] in site.build()
    assert not list((site.root / "work").glob("gen-*"))
    check_generations(site.shards, 1)
    site.build("--out", site.root / "fresh", "--work", site.root / "other")
    assert files_of(site.shards) == files_of(site.root / "fresh")


def test_other_options_write_all_rows_again(site: Site) -> None:
    site.add("a.jsonl", *(ask(f"Is {i} even?") for i in range(40)))
    site.build()
    site.add("a.jsonl", ask("Is it appended?"))
    site.build()
    log = site.build("--seed", 1, "--format", "webdataset")
    assert skipped(log) == ["tokenize", "images", "vq"]
    check_generations(site.shards, 1)
    site.add("b.jsonl", ask("And once more?"))
    before = files_of(site.shards)
    site.build("--seed", 1, "--format", "webdataset")
    assert kept(before, site.shards)
    check_generations(site.shards, 2)


def test_a_new_source_is_appended(site: Site) -> None:
    site.add("a.jsonl", *(ask(f"Is {i} even?") for i in range(40)))
    (site.data / "more.csv").write_text("image,caption\np.png,A scene\n")
    (site.data / "p.png").write_bytes(scene(1))
    site.build()
    before = files_of(site.shards)
    sources = {"mine": {"path": "*.jsonl"}, "captions": {"path": "more.csv"}}
    (site.data / "sources.yaml").write_text(json.dumps({"sources": sources}))
    assert "ingest: captions goes on with" in site.build()
    assert kept(before, site.shards)
    check_generations(site.shards, 2)
    assert load_manifest(site.shards).counts["captions"].written == 1


def test_ids_and_pictures_that_failed_are_remembered(tmp_path: Path, sample_data: Path) -> None:
    site = Site(tmp_path, sample_data / "tokenizer", number_ids=True, columns={"id": "id"})
    questions = [ask(f"Is {i} even?") | {"id": f"{i}"} for i in range(38)]
    site.add(
        "a.jsonl",
        *questions,
        ask("Else?") | {"id": "7"},
        ask("What?", "bad.png") | {"id": "x"},
        bad=b"no picture",
    )
    site.build()
    site.add("a.jsonl", ask("Once more?") | {"id": "7"}, ask("Fine?") | {"id": "y"})
    site.add("a.jsonl", ask("And this?", "bad.png") | {"id": "z"})
    site.build("--max-reject-rate", 0.5)
    assert {"7", "7#2", "7#3", "y"} < site.sides().keys()
    assert site.rejected() == {("x", "image_unreadable"), ("z", "image_unreadable")}
    check_generations(site.shards, 2)


def test_a_new_file_that_is_mostly_unusable_stops_the_build(site: Site) -> None:
    site.add("a.jsonl", *(ask(f"Is {i} even?") for i in range(200)))
    site.build()
    before = files_of(site.shards)
    site.add("b.jsonl", ask("Fine?"), *(ask(f"Is {i}?", "gone.png") for i in range(3)))
    result = invoke(pipelines, *site.command, code=2)
    assert "3 of 4 rows cannot be used" in result.output
    assert files_of(site.shards) == before


def test_diff_names_rows_added_gone_and_changed(site: Site) -> None:
    site.add("a.jsonl", *(ask(f"Is {i} even?") for i in range(40)))
    site.build()
    one, other = site.shards, site.root / "other"
    assert "0 rows added, 0 gone, 0 changed" in invoke(shards, "diff", one, one).output
    lines = (site.data / "a.jsonl").read_text().splitlines(keepends=True)
    lines[3] = json.dumps(ask("Is 3 even?", answer="No.")) + "\n"
    (site.data / "a.jsonl").write_text("".join(lines[:-1]))
    site.add("b.jsonl", ask("Is it new?"))
    site.build("--out", other)
    output = invoke(shards, "diff", one, other, code=1).output.splitlines()
    assert output[-1].startswith("1 rows added, 1 gone, ")
    assert "+ mine/b.jsonl:1" in output
    assert "- mine/a.jsonl:40" in output
    (changed,) = [line for line in output if line.startswith("~ mine/a.jsonl:4:")]
    assert "answer" in changed
    assert "input_ids" in changed
