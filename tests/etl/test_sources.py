"""Where rows come from: sources.yaml, folders, plug-ins, large files; a mistake is said in one line."""

import json
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import refusal
from paths import HUB, needs_shared
from raw_data import picture, run_well
from test_forms import ingest, messages, write_lines, write_tar

from janus.common.errors import UserError
from pipelines.cli import main
from pipelines.forms.json_rows import read_json
from pipelines.forms.row import MAX_ROW
from pipelines.tables import read_table


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a picture and a table of a row."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    write_lines(folder / "rows.jsonl", {"messages": messages("a", "b")})
    return folder


error_of = partial(refusal, main)
"""The one line with which a command ends."""


def ingest_error(data: Path, *more: object) -> str:
    return error_of("ingest", "--data", data, "--work", data.parent / "work", *more)


def keys(rows: list[dict[str, Any]]) -> list[str]:
    return [row["source_key"] for row in rows]


def sources(data: Path, **entries: dict[str, Any]) -> Path:
    """A sources.yaml (JSON is YAML) in the folder."""
    path = data / "sources.yaml"
    path.write_text(json.dumps({"sources": entries}))
    return path


MISTAKES = [
    ({"path": "rows.jsonl", "colums": {}}, "mine: unknown field colums; did you mean columns?"),
    (
        {"path": "rows.jsonl", "columns": {"imag": "x"}},
        "mine.columns: imag is none of ours; did you mean image",
    ),
    ({"path": "rows.jsonl", "columns": ["a"]}, "mine.columns: ['a'], expected"),
    ({"path": "rows.jsonl", "columns": {"query": "q"}}, "column q is missing"),
    ({"path": "rows.jsonl", "form": "mesages"}, "mine.form: 'mesages', expected messages"),
    ({"path": "rows.jsonl", "form": "query"}, "not of form query, which needs query and response"),
    ({"path": "rows.jsonl", "tags": ["vqas"]}, "mine.tags: ['vqas'], expected a list of text, vqa"),
    ({"path": "rows.jsonl", "split": "dev"}, "mine.split: 'dev', expected one of hash, upstream, train"),
    ({"path": "rows.jsonl", "split": "upstream"}, "begins with none of train, validation, test"),
    ({"path": "rows.jsonl", "as": "vqa"}, "`as: vqa` and `question:` go together"),
    (
        {"path": "rows.jsonl", "as": "vqa", "question": "What?"},
        "is for captions, and this is of form messages",
    ),
    ({"path": "rows.jsonl", "preset": "roko"}, "mine.preset: 'roko'; did you mean roco?"),
    ({"path": "gone.jsonl"}, "no file matches gone.jsonl"),
    ({"path": "*.csv"}, "no file matches *.csv"),
    ({"path": "a.png"}, "no known kind of file"),
    ({"form": "messages"}, "mine: path is missing"),
    ({"path": "rows.jsonl", "form": "gone.py"}, "gone.py: no such plug-in"),
    ("rows.jsonl", "mine: expected `field: value` lines"),
]


@pytest.mark.parametrize(("entry", "says"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_in_sources_yaml_is_named(data: Path, entry: Any, says: str) -> None:
    sources(data, mine=entry)
    assert says in ingest_error(data)


def test_a_sources_yaml_of_another_shape_is_named(data: Path) -> None:
    for text in ("", "[]", "sources:", "sources: {}\nmore: 1", "a: [", "sources: {a/b: {path: x}}"):
        (data / "sources.yaml").write_text(text)
        assert "sources.yaml" in ingest_error(data)
    sources(data, mine={"path": "rows.jsonl"})
    assert "no source min; did you mean mine" in ingest_error(data, "--source", "min")


def test_sources_choose_columns_tags_splits_and_pictures(data: Path) -> None:
    (data / "pics").mkdir()
    (data / "a.png").rename(data / "pics" / "a.png")
    table = [{"ask": f"{i}<image>", "tell": "b", "photo": "a.png", "n": i % 3} for i in range(4)]
    write_lines(data / "train-1.jsonl", *table, {"ask": "c", "tell": "d"})
    write_lines(data / "test-1.jsonl", {"ask": "c", "tell": "d", "n": 7})
    columns = {"query": "ask", "response": "tell", "image": "photo", "id": "n"}
    mine = {"path": "t*-1.jsonl", "columns": columns, "images": "pics", "number_ids": True}
    sources(
        data,
        numbered=mine | {"split": "upstream", "columns": {k: v for k, v in columns.items() if k != "image"}},
        pictures=mine | {"path": "train-1.jsonl", "tags": ["vqa"], "split": "validation"},
        unmarked=mine
        | {"path": "test-1.jsonl", "images": False, "columns": {"query": "ask", "response": "tell"}},
    )
    rows, rejects = ingest(data, "--source", "pictures")
    assert keys(rows) == ["0", "1", "2", "0#2"]
    assert {(row["task"], row["split"]) for row in rows} == {("vqa", "validation")}
    assert rejects == {None: "tag_filtered"}
    rows, rejects = ingest(data, "--source", "numbered")
    assert [(row["source_key"], row["split"]) for row in rows] == [("7", "test")]
    assert rejects == {**dict.fromkeys(("0", "1", "2", "0#2"), "image_count"), None: "no_key"}
    rows, rejects = ingest(data, "--source", "unmarked")
    assert (keys(rows), rejects) == (["test-1.jsonl:1"], {})


def test_marks_are_text_where_a_source_has_no_pictures(data: Path) -> None:
    write_lines(data / "rows.jsonl", {"messages": messages("<image>?", "b")})
    sources(data, mine={"path": "rows.jsonl", "images": False})
    (row,), rejects = ingest(data)
    assert (row["prompt"], row["task"], rejects) == ("<image>?", "text", {})


def test_filtered_rows_do_not_stop_a_build(data: Path) -> None:
    write_lines(data / "rows.jsonl", *({"messages": messages(str(i), "b")} for i in range(40)))
    sources(data, mine={"path": "rows.jsonl", "tags": ["vqa"]})
    run_well("ingest", "--data", data, "--work", data.parent / "work")


def test_a_preset_can_be_used_beside_ones_own(data: Path) -> None:
    (data / "my-roco").mkdir()
    write_lines(
        data / "my-roco" / "validation-1.jsonl", {"image_id": "1", "image": "../a.png", "caption": "A"}
    )
    preset = {"preset": "roco", "folder": "my-roco", "path": "*.jsonl", "images": ".."}
    write_lines(data / "my-roco" / "validation-1.jsonl", {"image_id": "1", "image": "a.png", "caption": "A"})
    path = sources(data, mine={"path": "rows.jsonl"}, roco=preset)
    rows, _ = ingest(data.parent, "--sources", path)
    assert [(row["source"], row["source_key"], row["split"]) for row in rows] == [
        ("mine", "rows.jsonl:1", None),
        ("roco", "1", "validation"),
    ]


def test_a_folder_with_one_table_needs_no_yaml(data: Path) -> None:
    rows, _ = ingest(data)
    assert [(row["source"], row["source_key"]) for row in rows] == [("rows", "rows.jsonl:1")]
    write_lines(data / "more.csv", "image,caption")
    assert "no single file of a known form" in ingest_error(data)


def test_a_folder_as_path_is_its_tables_of_one_kind(data: Path) -> None:
    deep = data / "deep" / "er"
    deep.mkdir(parents=True)
    write_lines(deep / "x.jsonl", {"messages": messages("c", "d")})
    write_lines(data / "deep" / "info.json", {"about": "the others"})
    write_lines(data / "deep" / ".hidden.jsonl", {"about": "nothing"})
    sources(data, mine={"path": "deep"})
    rows, _ = ingest(data)
    assert keys(rows) == ["er/x.jsonl:1"]
    write_lines(data / "deep" / "y.csv", "image,caption")
    assert "holds .csv and .jsonl; give a glob" in ingest_error(data)
    sources(data, mine={"path": "deep/**/*.jsonl"})
    (data / "deep" / "link.jsonl").symlink_to(data / "rows.jsonl")  # stays below the yaml's folder
    rows, _ = ingest(data)
    assert keys(rows) == ["deep/er/x.jsonl:1", "deep/link.jsonl:1"]
    (data.parent / "out.jsonl").write_text("{}")
    (data / "deep" / "link.jsonl").unlink()
    (data / "deep" / "link.jsonl").symlink_to(data.parent / "out.jsonl")
    assert "a link that leaves" in ingest_error(data)


def test_a_changed_picture_or_plugin_is_noticed(data: Path) -> None:
    write_lines(data / "rows.jsonl", {"image": "a.png", "caption": "A"})
    for change in (None, "a.png", "rows.jsonl"):
        if change:
            (data / change).write_bytes((data / change).read_bytes() + b" ")
        assert "skipped" not in run_well("ingest", "--data", data, "--work", data / "work")
        assert "skipped" in run_well("ingest", "--data", data, "--work", data / "work")


PLUGIN = """
from pathlib import Path
from pipelines.forms.plugin import Row

def rows(path):
    picture = (path / "a.png").read_bytes()
    yield Row([("user", "What?", [picture, Path("a.png")]), ("assistant", "Two")], key="bytes")
    yield Row([("system", "Be brief."), ("user", "Compare"), ("user", "with", ["a.png"]), ("assistant", 7)])
    yield Row([("assistant", "x")])
    yield Row([("user",), ("assistant", "x")], key="short")
    yield Row([("user", "x", "a.png"), ("assistant", "x")], key="no list")
    yield Row(None, key="nothing")
    yield {"messages": []}
    yield Row([("user", "x", [3.5]), ("assistant", "x")], key="number")
    yield Row([("user", "x", ["gone.png"]), ("assistant", "x")], key="gone")
"""


def test_a_plugin_gives_rows_and_its_own_bad_ones_are_rejected(data: Path) -> None:
    (data / "mine.py").write_text(PLUGIN)
    sources(data, mine={"path": ".", "form": "mine.py"})
    rows, rejects = ingest(data)
    assert [(row["source_key"], [m["text"] for m in row["messages"]]) for row in rows] == [
        ("bytes", ["What?", "Two"]),
        ("2", ["Be brief.", "Compare", "with", "7"]),
    ]
    assert [len(message["pictures"]) for message in rows[0]["messages"]] == [2, 0]
    assert rejects == {
        "3": "assistant_first",
        **dict.fromkeys(("short", "no list", "nothing", "7", "number"), "wrong_type"),
        "gone": "image_missing",
    }


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def rows(path):\n    yield 1 / 0\n", "after row 0: ZeroDivisionError: division by zero"),
        ("def rows(path):\n    return 7\n", "TypeError"),
        ("def lines(path): pass\n", "defines no function rows(path)"),
        ("def rows(:\n", "SyntaxError"),
        ("import nowhere_at_all\n", "ModuleNotFoundError"),
    ],
)
def test_a_plugin_that_fails_is_named(data: Path, code: str, says: str) -> None:
    (data / "mine.py").write_text(code)
    sources(data, mine={"path": "rows.jsonl", "form": "mine.py"})
    line = ingest_error(data)
    assert f"{data / 'mine.py'}" in line
    assert says in line


def test_a_line_of_a_gigabyte_is_rejected_without_being_read(data: Path) -> None:
    good = json.dumps({"messages": messages("a", "b")}).encode()
    with (data / "rows.jsonl").open("wb") as file:
        file.write(good + b"\n")
        file.truncate(1 << 30)
        file.seek(0, 2)
        file.write(b"\n" + good)
    tracemalloc.start()
    found = list(read_json(data / "rows.jsonl"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [record.error.args[0] if record.error else None for record in found] == [
        None,
        "line_too_long",
        None,
    ]
    assert peak < 3 * MAX_ROW


def test_an_array_is_read_in_flat_memory(data: Path) -> None:
    """60 MB in elements of 20 kB; one of a few MB is longer than the buffer."""
    path = data / "rows.json"
    with path.open("w") as file:
        for i in range(3000):
            words = "é" * (3_000_000 if i == 1500 else 10_000)
            file.write(("[\n" if i == 0 else ",\n") + json.dumps({"id": i, "x": words}, ensure_ascii=False))
        file.write("\n]")
    assert path.stat().st_size > 60 << 20
    tracemalloc.start()
    assert [record.fields["id"] for record in read_json(path) if record.fields] == list(range(3000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


ARRAYS = {
    "[1, 2.5, true, null]": ["wrong_type"] * 4,
    '[{"a": 1, "a": 2}, {"b": {"c": 1, "c": 2}}, {}]': ["duplicate_keys", "duplicate_keys", None],
    "\ufeff [ ] ": [],
    '[{"a": "]"}\n,\t{"a": "[,"}]': [None, None],
}


@pytest.mark.parametrize("text", ARRAYS)
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_arrays_are_read_whatever_the_size_of_a_piece(
    data: Path, text: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.forms.json_rows.PIECE", piece)
    (data / "rows.json").write_text(text, encoding="utf-8")
    reasons = [record.error.args[0] if record.error else None for record in read_json(data / "rows.json")]
    assert reasons == ARRAYS[text]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"a": 1},\n{"a": 2}', "line 2"),
        ('[{"a": 1}\n\n{"a": 2}]', "line 3"),
        ('[{"a": 1}]\n]', "line 2"),
        ('[\n{"a": 1},]', "line 2"),
        ('[{"a": "\n"}]', "line 1"),
        ('[{"a": tru}]', "line 1"),
        ('[{"a": "x', "line 1"),
        ("[12", "line 1"),
        ("[" * 100_000, "nested"),
        ("[" + "1" * 10_000 + "]", "line 1"),
        ("   ", "empty"),
    ],
)
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_an_array_that_is_broken_is_named_with_its_line(
    data: Path, text: str, says: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.forms.json_rows.PIECE", max(piece, 4 if len(text) < 100 else 1000))
    path = data / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"{path}.*{says}"):
        list(read_json(path))


@pytest.mark.parametrize("name", ["rows.tar", "rows.parquet", "rows.csv", "rows.json"])
def test_a_damaged_or_empty_file_is_named(data: Path, name: str) -> None:
    (data / "rows.jsonl").unlink()
    for content in (b"", b"\x00\x01damage" * 100):
        (data / name).write_bytes(content)
        assert str(data / name) in ingest_error(data)


def test_a_tar_that_is_cut_or_damaged_between_members_is_named(data: Path) -> None:
    """Python's tarfile takes a damaged header for the end."""
    (data / "rows.jsonl").unlink()
    write_tar(data / "rows.tar", {f"{i}.{end}": picture() for i in range(9) for end in ("png", "txt")})
    whole = (data / "rows.tar").read_bytes()
    header = whole.index(b"5.png")
    damaged = whole[:header] + bytes(whole[header] ^ 1 for _ in range(1)) + whole[header + 1 :]
    for content in (whole[:header], whole[: header + 100], whole[: header + 600], damaged):
        (data / "rows.tar").write_bytes(content)
        assert f"{data / 'rows.tar'}: damaged" in ingest_error(data)


def test_a_quote_that_is_not_closed_is_named(data: Path) -> None:
    """It would swallow the rest of the table as one caption."""
    (data / "rows.jsonl").unlink()
    (data / "rows.csv").write_text('image,caption\na.png,A\na.png,"B\na.png,C\na.png,D\n')
    line = ingest_error(data)
    assert f"{data / 'rows.csv'}: line " in line
    assert "the row after line 2 has a quote that is not closed" in line


def test_inspect_source_says_what_it_needs(data: Path) -> None:
    assert "give a file or folder" in error_of("inspect-source")
    assert "expected one of messages" in error_of("inspect-source", data / "rows.jsonl", "--form", "mesages")
    path = sources(data, one={"path": "rows.jsonl"}, two={"path": "*.csv"})
    write_lines(data / "two.csv", "image,caption", "a.png,A")
    assert "two: 1 rows = 1 usable" in run_well("inspect-source", data)
    log = run_well("inspect-source", data / "rows.jsonl", "--sources", path)
    assert "one: 1 rows" in log
    assert "two:" not in log
    assert "no source reads" in error_of("inspect-source", data / "a.png", "--sources", path)


@needs_shared
def test_the_presets_rows_are_what_they_were(tmp_path: Path) -> None:
    """Counts, keys, texts and pictures that the adapters gave before there were forms."""
    work = tmp_path / "work"
    run_well("ingest", "--data", HUB, "--work", work)
    tables = {
        path.name.split(".")[0]: read_table(path).to_pylist() for path in work.glob("ingest/*.rows.arrow")
    }
    assert {name: len(rows) for name, rows in tables.items()} == {
        "pubmedqa": 1000,
        "artwork": 9,
        "medical-vqa": 1794,
        "roco": 35,
    }
    (reject,) = read_table(work / "rejects.arrow").to_pylist()
    assert [reject[name] for name in ("source", "source_key", "reason")] == [
        "medical-vqa",
        "missing-0",
        "image_missing",
    ]
    upstream = json.loads((HUB / "medical-vqa" / "vqa-rad" / "train" / "dataset.json").read_text())
    seen: Counter[str] = Counter()
    asked = {}
    for row in upstream:
        seen[row["id"]] += 1
        key = row["id"] if seen[row["id"]] == 1 else f"{row['id']}#{seen[row['id']]}"
        asked[key] = row["conversations"][-2]["value"].replace("<image>", "").strip()
    del asked["missing-0"]
    assert [(row["source_key"], row["prompt"]) for row in tables["medical-vqa"]] == [*asked.items()]
    assert keys(tables["artwork"])[0] == "paintings/images/starry_night.jpg"
    assert {row["split"] for row in tables["roco"]} == {"validation", "test"}
    assert {row["split"] for name in ("pubmedqa", "artwork", "medical-vqa") for row in tables[name]} == {None}
    assert {row["task"] for row in tables["medical-vqa"]} == {"vqa"}
    for name in ("artwork", "roco"):
        shapes = [
            [(m["role"], bool(m["text"]), len(m["pictures"])) for m in row["messages"]]
            for row in tables[name]
        ]
        assert shapes == [[("user", True, 0), ("assistant", False, 1)]] * len(tables[name])
    counts = {kind: read_table(work / "ingest" / f"{kind}.images.arrow").num_rows for kind in KINDS}
    assert counts == {"understanding": 313, "generation": 44}


KINDS = ("understanding", "generation")
