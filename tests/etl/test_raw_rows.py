"""Raw files as they come: a row is used or set aside with its reason, a wrong file is named.

Paths, encodings, types and texts nobody has read; the good rows around them must come through unharmed.
"""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_data import (
    picture,
    run,
    run_well,
    vqa_row,
    write_artwork,
    write_medical_vqa,
    write_pubmedqa,
    write_roco,
)

from janus.tokens import SPECIAL_NAMES, JanusTokenizer
from pipelines.tables import TOKEN_SCHEMA, read_table

GOOD = {"pubid": 1, "question": "Is it good?", "long_answer": "It is."}


def rejects_of(data: Path, *stages: str, tokenizer: Path | None = None) -> dict[str, str]:
    """source_key → reason, after ingest and the stages named."""
    work = data / "work"
    for stage in ("ingest", *stages):
        inputs = ["--data", data] if stage == "ingest" else ["--tokenizer", tokenizer]
        run_well(stage, "--work", work, *inputs, "--max-reject-rate", 1)
    rejects = read_table(work / "rejects.arrow").to_pylist()
    assert all(row["reason"] and row["stage"] and row["source"] for row in rejects)
    return {row["source_key"]: row["reason"] for row in rejects}


def rows_of(data: Path, source: str) -> dict[str, dict]:
    rows = read_table(data / "work" / "ingest" / f"{source}.rows.arrow").to_pylist()
    return {row["source_key"]: row for row in rows}


def error_of(data: Path) -> str:
    """The one line with which ingest refuses the data; nothing is left of the stage."""
    result = run("ingest", "--data", data, "--work", data / "work")
    assert result.exit_code == 2, result.output
    assert not (data / "work" / "ingest").exists()
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    return line


def test_pubmedqa_takes_question_and_long_answer_and_strips(tmp_path: Path) -> None:
    answers = {1: " Yes, it is.\n", 2: "", 3: "  ", 4: None}
    rows = [{"pubid": k, "question": f" Is it {k}? ", "long_answer": v} for k, v in answers.items()]
    rows += [{"pubid": key, "question": q, "long_answer": "a"} for key, q in ((5, None), (1, "Another?"))]
    write_pubmedqa(tmp_path, rows)
    assert rejects_of(tmp_path) == {
        **dict.fromkeys(("2", "3", "4"), "empty_answer"),
        "5": "empty_question",
        "1": "duplicate_id",
    }
    (row,) = rows_of(tmp_path, "pubmedqa").values()
    assert (row["prompt"], row["answer"], row["task"]) == ("Is it 1?", "Yes, it is.", "text")
    assert row["split"] is None


def test_conversations_markers_and_types(tmp_path: Path) -> None:
    """Whole numbers are written out, as upstream's own answers are; other types are rejected."""
    rows = [
        vqa_row("before", "a.png", "<image>\nWhat?", "This"),
        vqa_row("after", "a.png", "Where?\n<image>", 3),
        vqa_row("turns", "a.png", "<image>\nOne?", "1", "Two?", "2", "Three?", "3"),
        vqa_row("none", "a.png", "What?", "This"),
        vqa_row("two", "a.png", "<image>\nWhat?\n<image>", "This"),
        vqa_row("inline", "a.png", "What <image> is?", "This"),
        vqa_row("later", "a.png", "<image>\nOne?", "1", "<image>\nTwo?", "2"),
        vqa_row("order", "a.png", "<image>\nOne?"),
        vqa_row("float", "a.png", "<image>\nOne?", 1.5),
        vqa_row("bool", "a.png", "<image>\nOne?", True),
        vqa_row("nothing", "a.png", "<image>\nOne?", None),
        vqa_row("list", "a.png", "<image>\nOne?", ["yes"]),
        vqa_row("numbered question", "a.png", 12, "yes"),
        vqa_row("picture", 7, "<image>\nOne?", "yes"),  # type: ignore[arg-type]
        {"id": 5, "image": "a.png", "conversations": "text"},
        vqa_row("blank", "a.png", "<image>\nOne?", "  "),
        vqa_row("surrogate", "a.png", "<image>\nOne?", "\ud800"),
        vqa_row("gone", "gone.png", "<image>\nOne?", "1"),
        vqa_row("before", "a.png", "<image>\nAnother wording?", "This"),
        vqa_row(1, "a.png", "<image>\nWhat?", "This"),  # type: ignore[arg-type]
        {"id": "empty", "image": "a.png", "conversations": []},
        {"id": {"a": 1}, "image": "a.png", "conversations": []},
        "not a row",
        *(
            vqa_row(f"earlier {name}", "a.png", "<image>\nOne?", "1", text, "2", "Three?", "3")
            for name, text in {"nul": "a\0b", "surrogate": "\udcff", "blank": " "}.items()
        ),
    ]
    write_medical_vqa(tmp_path, rows, {"a.png": picture()})
    assert rejects_of(tmp_path) == {
        **dict.fromkeys(("none", "two", "inline", "later", "numbered question"), "wrong_image_marker"),
        **dict.fromkeys(("float", "bool", "nothing", "list", "5", "row 21", "row 22"), "wrong_type"),
        **dict.fromkeys(("order", "empty"), "wrong_turns"),
        **dict.fromkeys(("picture", "gone"), "image_missing"),
        "blank": "empty_answer",
        **dict.fromkeys(("surrogate", "earlier nul", "earlier surrogate"), "invalid_text"),
        "earlier blank": "empty_turn",
    }
    kept = rows_of(tmp_path, "medical-vqa")
    assert list(kept) == ["before", "after", "turns", "before#2", "1"]
    assert kept["before"]["prompt"] == "What?"
    assert (kept["after"]["prompt"], kept["after"]["answer"]) == ("Where?", "3")
    assert kept["turns"]["prompt"] == "Three?"
    assert [turn["user"] for turn in kept["turns"]["history"]] == ["One?", "Two?"]
    assert read_table(tmp_path / "work" / "ingest" / "understanding.images.arrow").num_rows == 1


def test_roco_keeps_upstreams_splits(tmp_path: Path) -> None:
    write_roco(tmp_path, [{"image": picture(), "image_id": "r1", "caption": " A chest. "}], "train")
    write_roco(tmp_path, [{"image": None, "image_id": "r2", "caption": "B"}], "test")
    assert rejects_of(tmp_path) == {"r2": "image_missing"}
    (row,) = rows_of(tmp_path, "roco").values()
    assert (row["split"], row["prompt"]) == ("train", "A chest.")


def test_picture_paths_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    """Climbing, absolute, linked (the file, a folder, in two hops), a device, a pipe, a folder."""
    data, secret = tmp_path / "data", tmp_path / "secret.png"
    secret.write_bytes(picture((1, 2, 3)))
    refused = [
        "../../etc/passwd",
        "../../../../secret.png",
        "/etc/passwd",
        str(secret),
        "..",
        "a/../../x.png",
    ]
    refused += ["..\\..\\secret.png", "nul\0.png", "link.png", "hop.png", "folder/secret.png"]
    missing = ["pipe.png", ".", "", "subfolder", "gone.png", "~/secret.png", "$HOME/secret.png"]
    missing += ["file:///etc/passwd", "https://example.org/x.png", "loop.png", "images", "%2e%2e/secret.png"]
    names = [*refused, *missing, "x" * 300, "é" * 200]
    rows = [vqa_row(f"{i}", name, "<image>\nWhat?", "This") for i, name in enumerate(names)]
    rows += [vqa_row("good", "sub/good one.png", "<image>\nWhat?", "This")]
    rows += [vqa_row("inner", "inner.png", "<image>\nWhat?", "This")]
    images = write_medical_vqa(data, rows, {}).parents[1] / "images"
    for folder in ("sub", "subfolder"):
        (images / folder).mkdir()
    (images / "sub" / "good one.png").write_bytes(picture())
    for link, target in [("link.png", secret), ("hop.png", "link.png"), ("folder", tmp_path)]:
        (images / link).symlink_to(target)
    (images / "loop.png").symlink_to("loop.png")
    (images / "inner.png").symlink_to("sub/good one.png")  # stays inside
    os.mkfifo(images / "pipe.png")
    csv = b"image_path,text_en\n../secret.png,a thing\n./jade/images/0.png,b\n"
    write_artwork(data, csv, {"0.png": picture()})
    reasons = rejects_of(data)
    assert reasons.pop("../secret.png") == "image_path_refused"
    expected = dict.fromkeys(refused, "image_path_refused") | dict.fromkeys(missing, "image_missing")
    expected |= {"x" * 300: "image_unreadable", "é" * 200: "image_unreadable"}
    assert {names[int(key)]: reason for key, reason in reasons.items()} == expected
    assert set(rows_of(data, "medical-vqa")) == {"good", "inner"}
    kept = read_table(data / "work/ingest/understanding.images.arrow")["image"].to_pylist()
    assert kept == [picture()]


def test_a_picture_file_larger_than_memory_is_not_read(tmp_path: Path) -> None:
    rows = [vqa_row(name, name, "<image>\nWhat?", "This") for name in ("giant.png", "good.png")]
    path = write_medical_vqa(tmp_path, rows, {"good.png": picture(), "giant.png": picture()})
    with (path.parents[1] / "images" / "giant.png").open("r+b") as file:
        file.truncate(1 << 42)  # 4 TiB of nothing
    assert rejects_of(tmp_path) == {"giant.png": "image_unreadable"}
    assert set(rows_of(tmp_path, "medical-vqa")) == {"good.png"}


def test_a_table_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    path = write_medical_vqa(data, [], {})
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    assert f"{path}: a link that leaves" in error_of(data)


CSV_ROWS = (
    b"\xef\xbb\xbfimage_path,text_en\r\n"
    b'./jade/images/0.png,"a ""quoted"" thing,\r\nin two lines"\r\n'
    b"jade/images/1.png,latin caf\xe9\r\n"
    b"jade/images/2.png\r\n"
    b"jade/images/3.png,   \r\n"
    b"jade/images/4.png,\"=cmd|' /C calc'!A0\"\r\n"
    b"jade/images/5.png,sjis \x83\x65\x83\x58\x83\x67\r\n"
    b"\r\n"
    b"jade/images/6.png,more,fields,than,the header\r\n"
    b"jade/images/7\xe9.png,name in latin\r\n"
    b"jade/images/8.png," + "žluťoučký кот 猫 🐈".encode() + b"\r\n"
)


def test_csv_of_other_encodings_with_quotes_and_line_breaks(tmp_path: Path) -> None:
    write_artwork(tmp_path, CSV_ROWS, {f"{i}.png": picture((i, 0, 0)) for i in range(9)})
    reasons = rejects_of(tmp_path)
    assert reasons == {
        "jade/images/1.png": "invalid_text",
        "line 5": "wrong_type",
        "jade/images/3.png": "empty_caption",
        "jade/images/5.png": "invalid_text",
        "jade/images/6.png": "wrong_type",
        "jade/images/7\\udce9.png": "invalid_text",
    }
    rows = rows_of(tmp_path, "artwork")
    assert {(row["task"], row["answer"]) for row in rows.values()} == {("t2i", "")}
    kept = {key[-5:-4]: row["prompt"] for key, row in rows.items()}
    assert kept == {
        "0": 'a "quoted" thing,\r\nin two lines',
        "4": "=cmd|' /C calc'!A0",
        "8": "žluťoučký кот 猫 🐈",
    }


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp037"])
def test_a_csv_of_a_wide_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = write_artwork(tmp_path, "image_path,text_en\na.png,b\n".encode(encoding), {})
    line = error_of(tmp_path)
    assert all(part in line for part in (str(path), "image_path", "UTF-8"))


ROWS = json.dumps([vqa_row(str(i), "a.png", "<image>\nWhat?", "This") for i in range(5)])
SHAPES = ["[" * 100_000, "1" * 10_000, "[1e999, NaN]", "", "\0", "null", '"rows"', "{}", '{"rows": []}']


@pytest.mark.parametrize(
    ("text", "says"),
    [(ROWS[:-cut], "line 1 column") for cut in (1, 7, 40, 200)]
    + [(text, "") for text in SHAPES]
    + [('[{"id": "1", "picture": "a", "conversations": []}]', "field image")],
)
def test_json_that_breaks_off_or_has_another_shape_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = write_medical_vqa(tmp_path, [], {})
    path.write_text(text)
    line = error_of(tmp_path)
    assert str(path) in line
    assert says in line


PARQUET = {"pubid": pa.int32(), "question": pa.string(), "long_answer": pa.string()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"long_answer": None}, "column long_answer is missing, expected string"),
        ({"long_answer": None, "longAnswer": pa.string()}, "column long_answer is missing"),
        ({"question": pa.int64()}, "column question is int64, expected string"),
        ({"question": pa.binary()}, "column question is binary, expected string"),
        ({"question": pa.list_(pa.string())}, "column question is list"),
        ({"pubid": pa.string()}, "column pubid is string, expected integer"),
        ({"pubid": pa.float64()}, "column pubid is double, expected integer"),
    ],
)
def test_a_parquet_column_missing_renamed_or_retyped_is_named(
    tmp_path: Path, change: dict, says: str
) -> None:
    fields = [(name, kind) for name, kind in (PARQUET | change).items() if kind is not None]
    path = write_pubmedqa(tmp_path, [], pa.schema(fields))
    assert f"{path}: {says}" in error_of(tmp_path)


@pytest.mark.parametrize("image", [pa.binary(), pa.struct([("path", pa.string())]), pa.string()])
def test_a_picture_column_of_another_shape_is_named(tmp_path: Path, image: pa.DataType) -> None:
    path = write_roco(tmp_path, [])
    fields = [("image", image), ("image_id", pa.string()), ("caption", pa.string())]
    pq.write_table(pa.Table.from_pylist([], pa.schema(fields)), path)
    assert f"{path}: column image.bytes is missing, expected binary" in error_of(tmp_path)


@pytest.mark.parametrize("damage", ["none at all", "cut", "in the middle"])
def test_a_damaged_parquet_is_named(tmp_path: Path, damage: str) -> None:
    path = write_pubmedqa(tmp_path, [{**GOOD, "pubid": i, "question": f"Is {i}?" * 50} for i in range(500)])
    data = path.read_bytes()
    middle = data[:200] + bytes(3800) + data[4000:]
    path.write_bytes({"none at all": b"a,b\n1,2\n", "cut": data[:-40], "in the middle": middle}[damage])
    line = error_of(tmp_path)
    assert str(path) in line
    assert "parquet" in line


def test_a_dataset_folder_of_another_layout_is_named(tmp_path: Path) -> None:
    (tmp_path / "PubMedQA").mkdir()
    assert "pqa_*/*.parquet" in error_of(tmp_path)
    (tmp_path / "PubMedQA").rmdir()
    path = write_artwork(tmp_path, b"path,text\na,b\n", {})
    assert f"{path}: column image_path is missing" in error_of(tmp_path)


ODD_TEXTS = {
    "right-to-left": "\u202eהאם זה סרטן?\u202c هل هو ورم؟",
    "combining": "Z" + "\u0300\u0301\u0302" * 60 + " a\u0308 e\u0301?",
    "joined": "👩‍👩‍👧‍👦🏽 family?",
    "zero-width": "is\u200bit\ufeff?",
    "control": "bell \x07 escape \x1b[31m red?",
    "noncharacter": "\uffff \ufdd0 \U0010ffff?",
    "one-line": "line\rone\x0btwo\u2028three\u0085?",
    "formats": "%s {0} {config} ${HOME} `id` $(id)?",
    "yaml": "!!python/object/apply:os.system ['id']?",
    "pickle": "cos\nsystem\n(S'id'\ntR.",
    "markup": "[bold red]rich[/bold red] <script>?",
}


def test_odd_texts_are_used_as_they_are(tmp_path: Path, sample_data: Path) -> None:
    specials = {f"special {name}": f"Is {text} a word? {text}" for name, text in SPECIAL_NAMES.items()}
    texts = {**ODD_TEXTS, **specials, "marker": "<image>\n<image>?"}
    names = list(texts)
    rows = [{"pubid": i, "question": texts[n], "long_answer": texts[n]} for i, n in enumerate(names)]
    write_pubmedqa(tmp_path, rows)
    assert rejects_of(tmp_path, "tokenize", tokenizer=sample_data / "tokenizer") == {}
    kept = {names[int(key)]: row["prompt"] for key, row in rows_of(tmp_path, "pubmedqa").items()}
    assert kept == {name: text.strip() for name, text in texts.items()}
    tokenizer = JanusTokenizer(sample_data / "tokenizer")
    special = tokenizer.special
    tokens = read_table(tmp_path / "work/tokenize/pubmedqa-00000.arrow")
    assert tokens.schema == TOKEN_SCHEMA
    structure = [special.bos, special.user, special.assistant, special.eos]
    every = {getattr(special, name) for name in SPECIAL_NAMES}
    for name, row in zip(names, tokens.to_pylist(), strict=True):
        assert [i for i in row["input_ids"] if i in every] == structure, name
        (span,) = row["supervised"]
        ids = row["input_ids"][span["start"] : span["end"]]
        assert ids[-1] == special.eos
        assert tokenizer.decode(ids[:-1]).strip() == texts[name].strip()


def test_texts_that_say_nothing_or_are_damaged_are_set_aside(tmp_path: Path, sample_data: Path) -> None:
    bad = {
        "empty_question": ["", " ", "\u00a0\u2003\u3000", "\n\t\r\x0b\x0c", "\u2028\u0085\x1f", None],
        "invalid_text": ["NUL \0 inside?", "\0"],
        "too_long": ["word " * 20_000, "x" * 100_000, "\u0301" * 50_000, "猫" * 35_000],
    }
    flat = [(reason, text) for reason, texts in bad.items() for text in texts]
    rows = [{"pubid": i, "question": text, "long_answer": "yes"} for i, (_, text) in enumerate(flat)]
    answers = [{"pubid": 100 + i, "question": f"Q{i}?", "long_answer": t} for i, (_, t) in enumerate(flat)]
    write_pubmedqa(tmp_path, [*rows, *answers, {**GOOD, "pubid": 999}])
    expected = {str(i): reason for i, (reason, _) in enumerate(flat)}
    expected |= {str(100 + i): reason.replace("question", "answer") for i, (reason, _) in enumerate(flat)}
    assert rejects_of(tmp_path, "tokenize", tokenizer=sample_data / "tokenizer") == expected
    assert "999" in rows_of(tmp_path, "pubmedqa")


def test_bytes_that_are_not_utf8_do_not_harm_their_neighbours(tmp_path: Path) -> None:
    values = [b"fine?", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"good?"]
    binary = pa.array(values, pa.binary())
    strings = pa.StringArray.from_buffers(len(values), binary.buffers()[1], binary.buffers()[2])
    number = range(len(values))
    columns = {"pubid": pa.array(number, pa.int32()), "question": strings, "long_answer": ["a"] * len(values)}
    pq.write_table(pa.table(columns), write_pubmedqa(tmp_path, []))
    assert rejects_of(tmp_path) == {str(i): "invalid_text" for i in range(1, 6)}
    assert [row["prompt"] for row in rows_of(tmp_path, "pubmedqa").values()] == ["fine?", "good?"]
