"""Files of every form, written by hand: rows come as their turns say, a bad row is rejected by its reason."""

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_data import picture, run_well

from pipelines.tables import IMAGE_SCHEMA, ROW_SCHEMA, read_table

PICTURES = {"a.png": picture((1, 2, 3)), "b.png": picture((4, 5, 6)), "pics/c.png": picture((7, 8, 9))}
URI = "data:image/png;base64," + base64.b64encode(PICTURES["a.png"]).decode()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a few pictures."""
    folder = tmp_path / "data"
    for name, content in PICTURES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def ingest(data: Path, *more: object) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of all sources, and key → reason of the rejects; together they are all rows read."""
    work = data.parent / "work"
    run_well("ingest", "--data", data, "--work", work, "--max-reject-rate", 1, *more)
    tables = [read_table(path) for path in sorted((work / "ingest").glob("*.rows.arrow"))]
    assert all(table.schema == ROW_SCHEMA for table in tables)
    rows = [row for table in tables for row in table.to_pylist()]
    rejects = read_table(work / "rejects.arrow").to_pylist()
    read = json.loads((work / "ingest" / "stage.json").read_text())["notes"]["read"]
    assert sum(read.values()) == len(rows) + len(rejects)
    assert all(reject["reason"] for reject in rejects)
    return rows, {reject["source_key"]: reject["reason"] for reject in rejects}


def stored(data: Path) -> dict[str, dict[str, bytes]]:
    """Kind → sha256 → encoded picture."""
    found = {}
    for kind in ("understanding", "generation"):
        table = read_table(data.parent / "work" / "ingest" / f"{kind}.images.arrow")
        assert table.schema == IMAGE_SCHEMA
        pairs = [(one["image_sha256"], one["image"]) for one in table.to_pylist()]
        found[kind] = dict(pairs)
        assert len(found[kind]) == len(pairs)  # each once
    return found


def said(data: Path, row: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Role, text and names of the pictures of each message."""
    names = {content: name for name, content in PICTURES.items()}
    kinds = stored(data)
    of_role = {"user": "understanding", "assistant": "generation"}
    return [
        (m["role"], m["text"], [names[kinds[of_role[m["role"]]][sha256]] for sha256 in m["pictures"]])
        for m in row["messages"]
    ]


def image(**reference: Any) -> dict[str, Any]:
    return {"type": "image", **reference}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def messages(*turns: Any) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def write_lines(path: Path, *rows: Any) -> None:
    """rows: written as JSON, but for texts, which are lines as they are."""
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


ASK = ("user", "What?", ["a.png"])
TELL = ("assistant", "This.", [])
WHAT = {
    "parts": {"messages": messages([image(image="a.png"), text("What?")], "This.")},
    "path": {"messages": messages([image(path="a.png"), text("What?")], [text("This.")])},
    "url": {"messages": messages([image(url="a.png"), text("What?")], "This.")},
    "image_url": {"messages": messages([image(image_url={"url": URI}), text(" What? ")], "This.\n")},
    "openai": {
        "messages": messages([{"type": "image_url", "image_url": {"url": "a.png"}}, text("What?")], "This.")
    },
    "column": {"messages": messages([{"type": "image"}, text("What?")], "This."), "images": ["a.png"]},
    "mark": {"messages": messages("<image>\nWhat?", "This."), "images": ["a.png"]},
    "mark at the end": {"messages": messages("What?\n<image>", "This."), "image": "a.png"},
    "data": {"messages": messages("<image>What?", "This."), "images": URI},
    "struct": {"messages": messages("<image>What?", "This."), "images": [{"bytes": None, "path": "a.png"}]},
    "extra": {"messages": messages("<image>What?", "This."), "image": "a.png", "score": 1.5, "images": None},
}
CONVERSATION = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
OTHERS = {
    "llava": {"conversations": CONVERSATION, "image": "a.png"},
    "sharegpt": {"conversations": CONVERSATION, "images": ["a.png"]},
    "roles": {"conversations": messages("<image>What?", "This."), "images": ["a.png"]},
    "query": {"query": "<image>What?", "response": "This.", "images": ["a.png"], "history": []},
    "alpaca": {"instruction": "<image>What?", "input": "", "output": "This.", "image": "a.png"},
}


@pytest.mark.parametrize("name", [*WHAT, *OTHERS])
@pytest.mark.parametrize("kind", ["jsonl", "json", "array.jsonl", "parquet", "tar"])
def test_a_question_is_the_same_in_every_form(data: Path, name: str, kind: str) -> None:
    content = (WHAT | OTHERS)[name]
    path = data / f"rows.{kind}"
    if kind == "parquet":
        for turn in content.get("messages", []):  # a column has one type
            listed = any(isinstance(other["content"], list) for other in content["messages"])
            turn["content"] = (
                [text(turn["content"])] if listed and isinstance(turn["content"], str) else turn["content"]
            )
        pq.write_table(pa.Table.from_pylist([content]), path)
    elif kind == "tar":
        texts = json.dumps(content).replace('"a.png"', '"png"').encode()
        write_tar(path, {"x/1.json": texts, "x/1.png": PICTURES["a.png"]})
    else:
        path.write_text(json.dumps([content] if "array" in kind else content), encoding="utf-8")
    (only,), rejects = ingest(data)
    assert rejects == {}
    assert said(data, only) == [ASK, TELL]
    assert (only["task"], only["prompt"], only["answer"], only["split"]) == ("vqa", "What?", "This.", None)


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def test_pictures_keep_their_place_and_their_side(data: Path) -> None:
    """Between texts, several at once, drawn and shown; one at the end of the first question goes in front."""
    both = {"images": ["a.png", "b.png"]}
    write_lines(
        data / "rows.jsonl",
        {"id": "between", "messages": messages("Compare <image> with\n<image>\n", "Alike."), **both},
        {"id": "at once", "messages": messages("<image><image>\nCompare.", "Alike."), **both},
        {"id": "later", "messages": messages("<image>One?", "1", "And\n<image>", "2"), **both},
        {"id": "edit", "messages": messages("Blue <image>", "<image>"), **both},
        {"id": "drawn", "messages": messages("Draw.", [image(path="pics/c.png")])},
        {"id": "mixed", "messages": messages("Draw two.", "One: <image> two: <image>"), **both},
        {"id": "system", "messages": [{"role": "system", "content": "Be kind. "}, *messages("Hi", "Hello")]},
        {"id": "column", "system": "Be kind.", "messages": messages("Hi.", "Hello")},
        {"id": "no system", "system": "", "messages": messages("Hi!", "Hello")},
        {"id": "literal", "messages": messages([image(path="a.png"), text("An <image> mark?")], "Yes")},
    )
    rows, rejects = ingest(data)
    assert rejects == {}
    assert [(row["source_key"], row["task"]) for row in rows] == [
        ("between", "vqa"),
        ("at once", "vqa"),
        ("later", "vqa"),
        ("edit", "edit"),
        ("drawn", "t2i"),
        ("mixed", "interleaved"),
        ("system", "text"),
        ("column", "text"),
        ("no system", "text"),
        ("literal", "vqa"),
    ]
    by_key = {row["source_key"]: said(data, row) for row in rows if row["source_key"] != "system"}
    a, b = ["a.png"], ["b.png"]
    assert by_key["between"][:-1] == [("user", "Compare", []), ("user", "with", a), ("user", "", b)]
    assert by_key["at once"][:-1] == [("user", "Compare.", [*a, *b])]
    assert by_key["later"][2:4] == [("user", "And", []), ("user", "", b)]
    assert by_key["edit"] == [("user", "Blue", a), ("assistant", "", b)]
    assert by_key["drawn"] == [("user", "Draw.", []), ("assistant", "", ["pics/c.png"])]
    assert by_key["mixed"][1:] == [("assistant", "One:", []), ("assistant", "two:", a), ("assistant", "", b)]
    assert by_key["column"][0] == ("system", "Be kind.", [])
    assert by_key["no system"][0][0] == "user"
    assert by_key["literal"][0] == ("user", "An <image> mark?", a)
    prompts = {row["source_key"]: (row["prompt"], row["answer"]) for row in rows}
    assert prompts["between"] == ("Compare with", "Alike.")
    assert prompts["later"] == ("And", "2")
    kinds = stored(data)
    assert [len(kinds[kind]) for kind in ("understanding", "generation")] == [2, 3]  # a and b are in both


def test_history_and_input_are_turns_and_lines(data: Path) -> None:
    write_lines(
        data / "rows.jsonl",
        {"query": "c", "response": "d", "history": [["a", "b"]]},
        {"instruction": "a", "input": "b", "output": "c"},
        {"instruction": "a", "input": None, "output": 7},
    )
    rows, rejects = ingest(data)
    assert rejects == {}
    assert ["|".join(m["text"] for m in row["messages"]) for row in rows] == ["a|b|c|d", "a\nb|c", "a|7"]


TABLES = {
    "rows.csv": b'\xef\xbb\xbfimage,caption\r\na.png,"A, thing"\r\n',
    "rows.tsv": b"caption\timage\nA, thing\ta.png\n",
    "rows.jsonl": b'{"file_name": "a.png", "text": "A, thing"}\n\n',
    "rows.json": b'  [\n{"image_path": "a.png", "description": "A, thing"}]\n',
}


@pytest.mark.parametrize("name", [*TABLES, "rows.parquet", "rows.tar", "folder"])
@pytest.mark.parametrize("question", [None, "What?"])
def test_a_caption_is_drawn_or_told(data: Path, name: str, question: str | None) -> None:
    path = data / name
    if name in TABLES:
        path.write_bytes(TABLES[name])
    elif name == "rows.tar":
        write_tar(path, {"1.png": PICTURES["a.png"], "1.txt": b"A, thing"})
    elif name == "folder":
        path.mkdir()
        (path / "one.png").write_bytes(PICTURES["a.png"])
        (path / "one.txt").write_text("A, thing\n")
    else:
        rows = [{"image": {"bytes": PICTURES["a.png"], "path": "gone.png"}, "caption": "A, thing"}]
        pq.write_table(pa.Table.from_pylist(rows), path)
    more = f"    as: vqa\n    question: {question}\n" if question else ""
    (data / "sources.yaml").write_text(f"sources:\n  mine:\n    path: {name}\n{more}")
    (row,), rejects = ingest(data)
    assert rejects == {}
    drawn = [("user", "A, thing", []), ("assistant", "", ["a.png"])]
    told = [ASK, ("assistant", "A, thing", [])]
    assert said(data, row) == (told if question else drawn)
    assert (row["task"], row["source"]) == ("vqa" if question else "t2i", "mine")


def test_folders_and_tars_account_for_what_lacks_its_half(data: Path) -> None:
    (data / "a.txt").write_text("A")
    (data / "lonely.txt").write_text("B")
    rows, rejects = ingest(data)
    assert [row["source_key"] for row in rows] == ["a.png"]
    assert rejects == {"b.png": "empty_caption", "pics/c.png": "empty_caption", "lonely.txt": "image_missing"}
    files = {"1.txt": b"A", "2.png": PICTURES["a.png"], "3.txt": b"C", "3.png": PICTURES["a.png"]}
    files |= {"4.json": b"{", "5.txt": b"\xff", "5.png": PICTURES["a.png"], ".hidden": b""}
    write_tar(data / "rows.tar", files)
    rows, rejects = ingest(data)
    assert [row["source_key"] for row in rows] == ["rows.tar:3"]
    assert list(rejects.values()) == ["image_missing", "empty_caption", "not_json", "invalid_text"]


MARKED = "<image>What?"
BAD: dict[str, list[Any]] = {
    "unknown_role": [
        {"messages": [{"role": "tool", "content": "x"}, *messages("a", "b")]},
        {"messages": [{"role": "", "content": "x"}, *messages("a", "b")]},
    ],
    "assistant_first": [{"messages": messages("a", "b", "c")[1:]}],
    "wrong_turns": [
        {"messages": []},
        {"messages": messages("a")},
        {"messages": messages("a", "b", "c")},
        {"messages": [*messages("a"), *messages("a", "b")]},
        {"messages": [*messages("a", "b"), *messages("c", "d")[1:]]},
        {"messages": [*messages("a", "b"), {"role": "system", "content": "x"}, *messages("c", "d")]},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "system", "content": "x"}, *messages("a", "b")], "system": "y"},
    ],
    "empty_question": [
        {"messages": messages(" ", "b")},
        {"messages": messages(None, "b")},
        {"messages": messages([image(path="a.png")], "b")},
        {"messages": messages([image(path="a.png")], [image(path="b.png")])},
        {"messages": messages([], "b <image>"), "images": ["a.png"]},
    ],
    "empty_answer": [{"messages": messages("a", "")}, {"messages": messages("a", [])}],
    "empty_caption": [{"messages": messages("\u2003", [image(path="a.png")])}],
    "empty_turn": [{"messages": messages("a", " ", "b", "c")}, {"messages": messages("", "a", "b", "c")}],
    "system_picture": [
        {"messages": [{"role": "system", "content": [image(path="a.png")]}, *messages("a", "b")]}
    ],
    "image_count": [
        {"messages": messages(MARKED, "a")},
        {"messages": messages("What?", "a"), "images": ["a.png"]},
        {"messages": messages(MARKED, "a"), "images": ["a.png", "b.png"]},
        {"messages": messages(MARKED + "<image>", "a"), "images": ["a.png"]},
        {"messages": messages(MARKED, "a"), "images": []},
        {"messages": messages([{"type": "image"}, text("What?")], "a")},
        {"messages": messages([image(path="a.png"), text("What?")], "a"), "images": ["a.png"]},
    ],
    "image_missing": [
        {"messages": messages(MARKED, "a"), "images": [name]} for name in ("gone.png", "pics", "", None)
    ],
    "image_path_refused": [
        {"messages": messages(MARKED, "a"), "images": [name]}
        for name in ("../work", "/etc/passwd", "pics/../../x.png", "link.png", "..\\x.png", "a\0.png")
    ],
    "image_unreadable": [{"messages": messages(MARKED, "a"), "images": ["x" * 300]}],
    "bad_base64": [
        {"messages": messages(MARKED, "a"), "images": [f"data:{uri}"]}
        for uri in ("image/png;base64,####", "image/png;base64,AAA", "image/png,AAAA", "image/png;base64,")
    ],
    "remote_image": [
        {"messages": messages(MARKED, "a"), "images": [url]}
        for url in ("http://localhost/a.png", "HTTPS://example.org/a.png", "s3://bucket/a.png")
    ]
    + [{"messages": messages([image(image_url={"url": "https://example.org/a.png"}), text("b")], "c")}],
    "wrong_type": [
        {"messages": "text"},
        {"messages": None},
        {"messages": ["text"]},
        {"messages": messages(1.5, "a")},
        {"messages": messages(True, "a")},
        {"messages": messages({"a": 1}, "a")},
        {"messages": messages(["text"], "a")},
        {"messages": messages([{"type": "video", "video": "a.mp4"}], "a")},
        {"messages": messages([image(path=1.5), text("b")], "a")},
        {"messages": messages(MARKED, "a"), "image": "a.png", "images": ["a.png"]},
        {"messages": messages("a", "b"), "id": 1.5},
        {"messages": messages("a", "b"), "system": ["x"]},
        "[1]",
        "7",
        "null",
    ],
    "invalid_text": [
        {"messages": messages("a\0b", "c")},
        {"messages": messages("a", "\ud800")},
        {"messages": messages(MARKED, "a"), "images": ["\udcff.png"]},
        {"messages": messages("a", "b"), "id": "a\0b"},
    ],
    "duplicate_keys": [
        '{"messages": [], "messages": []}',
        '{"messages": [{"role": "user", "role": "user"}]}',
        r'{"\ud800": 1, "\ud800": 2}',
    ],
    "not_json": ["{", "{'a': 1}", "\0", '{"messages": []} x', "[" * 100_000, "1" * 10_000, '{"a": "\x07"}'],
    "other_form": [
        {"query": "a", "response": "b"},
        {"conversations": CONVERSATION, "image": "a.png"},
        {"image": "a.png", "caption": "b"},
        {"messages": None, "query": "a", "response": "b"},
    ],
    "duplicate_id": [{"id": "good", "messages": messages("again", "b")}],
}
CASES = [(reason, number) for reason, rows in BAD.items() for number in range(len(rows))]


@pytest.mark.parametrize(("reason", "number"), CASES, ids=lambda value: str(value))
def test_a_bad_row_is_rejected_by_its_reason_and_its_neighbours_stay(
    data: Path, reason: str, number: int
) -> None:
    (data / "link.png").symlink_to("/etc/passwd")
    bad = BAD[reason][number]
    good = {"id": "good", "messages": messages("a", "b")}
    write_lines(data / "rows.jsonl", good, bad, {"id": 8, "messages": messages("c", "d")})
    rows, rejects = ingest(data)
    assert [row["source_key"] for row in rows] == ["good", "8"]
    assert list(rejects.values()) == [reason]
