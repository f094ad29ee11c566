"""Raw files as they come: rows are used or rejected with a reason, a wrong file is named, others unharmed."""

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import refusal
from raw_data import picture, run_well, vqa_row, write_artwork, write_medical_vqa, write_pubmedqa, write_roco

from janus.tokens import SPECIAL_NAMES, JanusTokenizer
from pipelines.cli import main
from pipelines.tables import TOKEN_SCHEMA, read_table

FILE = "vqa-rad/train/dataset.json"
GOOD = {"pubid": 1, "question": "Is it good?", "long_answer": "It is."}


def rejects_of(data: Path, *stages: str, tokenizer: Path | None = None) -> dict[str, str]:
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
    line = refusal(main, "ingest", "--data", data, "--work", data / "work")
    assert not (data / "work" / "ingest").exists()
    return line


def test_pubmedqa_takes_question_and_long_answer_and_strips(tmp_path: Path) -> None:
    answers = {1: " Yes, it is.\n", 2: "", 3: "  ", 4: None}
    rows = [{"pubid": k, "question": f" Is it {k}? ", "long_answer": v} for k, v in answers.items()]
    rows += [{"pubid": key, "question": q, "long_answer": "a"} for key, q in ((5, None), (1, "Another?"))]
    write_pubmedqa(tmp_path, rows)
    expected = {**dict.fromkeys("234", "empty_answer"), "5": "empty_question", "1": "duplicate_id"}
    assert rejects_of(tmp_path) == expected
    (row,) = rows_of(tmp_path, "pubmedqa").values()
    assert (row["prompt"], row["answer"], row["task"]) == ("Is it 1?", "Yes, it is.", "text")
    assert row["split"] is None


def test_conversations_markers_and_types(tmp_path: Path) -> None:
    """Whole numbers are written out, as upstream's own answers are; other types are rejected."""
    rows: list = [{"id": {"a": 1}, "image": "a.png", "conversations": []}, "not a row"]
    rows += [{"id": key, "image": "a.png", "conversations": x} for key, x in ((5, "text"), ("empty", []))]
    rows[-1]["image"] = None
    rows += [
        vqa_row("before", "a.png", "<image>\nWhat?", "This"),
        vqa_row("after", "a.png", "Where?\n<image>", 3),
        vqa_row("turns", "a.png", "<image>\nOne?", "1", "Two?", "2", "Three?", "3"),
        vqa_row("later", "a.png", "<image>\nOne?", "1", "<image>\nTwo?", "2"),
        vqa_row("order", "a.png", "<image>\nOne?"),
        vqa_row("picture", 7, "<image>\nOne?", "yes"),  # type: ignore[arg-type]
        vqa_row("gone", "gone.png", "<image>\nOne?", "1"),
        vqa_row("before", "a.png", "<image>\nAnother wording?", "This"),
        vqa_row(1, "a.png", "<image>\nWhat?", "This"),  # type: ignore[arg-type]
    ]
    questions = {"none": "What?", "two": "<image>\nWhat?\n<image>", "inline": "What <image> is?", "12": 12}
    rows += [vqa_row(name, "a.png", question, "This") for name, question in questions.items()]
    answers: dict = {"float": 1.5, "bool": True, "none of it": None, "list": ["yes"], "blank": "  "}
    answers["surrogate"] = "\ud800"
    rows += [vqa_row(name, "a.png", "<image>\nOne?", answer) for name, answer in answers.items()]
    for name, text in {"nul": "a\0b", "surrogate": "\udcff", "blank": " "}.items():
        rows += [vqa_row(f"earlier {name}", "a.png", "<image>\nOne?", "1", text, "2", "Three?", "3")]
    write_medical_vqa(tmp_path, rows, {"a.png": picture()})
    assert rejects_of(tmp_path) == {
        **dict.fromkeys(("none", "two", "12", "later"), "image_count"),
        **dict.fromkeys(("float", "bool", "list", "5", f"{FILE}:1", f"{FILE}:2"), "wrong_type"),
        **dict.fromkeys(("order", "empty"), "wrong_turns"),
        **dict.fromkeys(("picture", "gone"), "image_missing"),
        **dict.fromkeys(("blank", "none of it"), "empty_answer"),
        **dict.fromkeys(("surrogate", "earlier nul", "earlier surrogate"), "invalid_text"),
        "earlier blank": "empty_turn",
    }
    kept = rows_of(tmp_path, "medical-vqa")
    assert list(kept) == ["before", "after", "turns", "before#2", "1", "inline"]
    assert kept["before"]["prompt"] == "What?"
    assert (kept["after"]["prompt"], kept["after"]["answer"]) == ("Where?", "3")
    assert kept["turns"]["prompt"] == "Three?"
    said = [(message["role"], message["text"]) for message in kept["turns"]["messages"]]
    assert said == [*zip(["user", "assistant"] * 3, ["One?", "1", "Two?", "2", "Three?", "3"], strict=True)]
    inline = [(message["text"], len(message["pictures"])) for message in kept["inline"]["messages"]]
    assert inline == [("What", 0), ("is?", 1), ("This", 0)]
    assert read_table(tmp_path / "work" / "ingest" / "understanding.images.arrow").num_rows == 1


def test_roco_keeps_upstreams_splits(tmp_path: Path) -> None:
    for split, key, image, caption in (("train", "r1", picture(), " A chest. "), ("test", "r2", None, "B")):
        write_roco(tmp_path, [{"image": image, "image_id": key, "caption": caption}], split)
    assert rejects_of(tmp_path) == {"r2": "image_missing"}
    (row,) = rows_of(tmp_path, "roco").values()
    assert (row["split"], row["prompt"]) == ("train", "A chest.")


def test_picture_paths_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    """Climbing, absolute, linked (the file, a folder, in two hops), a device, a pipe, a folder."""
    data, secret = tmp_path / "data", tmp_path / "secret.png"
    secret.write_bytes(picture((1, 2, 3)))
    refused = ["../../etc/passwd", "../../../../secret.png", "/etc/passwd", str(secret), "..", "hop.png"]
    refused += ["a/../../x.png", "..\\..\\secret.png", "nul\0.png", "link.png", "folder/secret.png"]
    missing = ["pipe.png", ".", "", "subfolder", "gone.png", "~/secret.png", "$HOME/secret.png"]
    missing += ["file:///etc/passwd", "loop.png", "images", "%2e%2e/secret.png"]
    unreadable = ["x" * 300, "é" * 200, "giant.png"]
    remote = ["https://example.org/x.png", "HTTP://example.org/x.png", "s3://bucket/x.png"]
    names = [*refused, *missing, *remote, *unreadable, "sub/good one.png", "inner.png"]
    rows = [vqa_row(f"{i}", name, "<image>\nWhat?", "This") for i, name in enumerate(names)]
    images = write_medical_vqa(data, rows, {}).parents[1] / "images"
    for folder in ("sub", "subfolder"):
        (images / folder).mkdir(parents=True)
    (images / "sub" / "good one.png").write_bytes(picture())
    links = {"link.png": secret, "hop.png": "link.png", "folder": tmp_path, "loop.png": "loop.png"}
    links["inner.png"] = "sub/good one.png"  # stays inside
    for link, target in links.items():
        (images / link).symlink_to(target)
    (images / "giant.png").touch()
    os.truncate(images / "giant.png", 1 << 42)  # 4 TiB of nothing, more than memory holds
    os.mkfifo(images / "pipe.png")
    csv = b"image_path,text_en\n../secret.png,a thing\n./jade/images/0.png,b\n"
    write_artwork(data, csv, {"0.png": picture()})
    reasons = rejects_of(data)
    assert reasons.pop("../secret.png") == "image_path_refused"
    expected = dict.fromkeys(refused, "image_path_refused") | dict.fromkeys(missing, "image_missing")
    expected |= dict.fromkeys(unreadable, "image_unreadable") | dict.fromkeys(remote, "remote_image")
    assert {names[int(key)]: reason for key, reason in reasons.items()} == expected
    assert [names[int(key)] for key in rows_of(data, "medical-vqa")] == names[-2:]
    kept = read_table(data / "work/ingest/understanding.images.arrow")["image"].to_pylist()
    assert kept == [picture()]


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
    expected = {"1": "invalid_text", "3": "empty_caption", "5": "invalid_text", "6": "wrong_type"}
    expected = {f"jade/images/{name}.png": reason for name, reason in expected.items()}
    expected |= {"jade/csvfile/image_text_en.csv:5": "wrong_type", "jade/images/7\\udce9.png": "invalid_text"}
    assert rejects_of(tmp_path) == expected
    rows = rows_of(tmp_path, "artwork")
    assert {(row["task"], row["answer"]) for row in rows.values()} == {("t2i", "")}
    texts = ['a "quoted" thing,\r\nin two lines', "=cmd|' /C calc'!A0", "žluťoučký кот 猫 🐈"]
    assert [row["prompt"] for row in rows.values()] == texts


def _link_out(data: Path, name: str) -> Path:
    path = write_medical_vqa(data, [], {})
    path.rename(data.parent / name)
    path.symlink_to(data.parent / name)
    return path


def _csv(data: Path, text: str, encoding: str = "utf-8") -> Path:
    return write_artwork(data, text.encode(encoding), {})


def _json(data: Path, text: str) -> Path:
    (path := write_medical_vqa(data, [], {})).write_text(text)
    return path


def _parquet(data: Path, **change: pa.DataType | None) -> Path:
    types = {"pubid": pa.int32(), "question": pa.string(), "long_answer": pa.string()} | change
    return write_pubmedqa(data, [], pa.schema([(name, kind) for name, kind in types.items() if kind]))


def _damaged(data: Path, damage: Callable[[bytes], bytes]) -> Path:
    path = write_pubmedqa(data, [{**GOOD, "pubid": i, "question": f"Is {i}?" * 50} for i in range(500)])
    path.write_bytes(damage(path.read_bytes()))
    return path


ROWS = json.dumps([vqa_row(str(i), "a.png", "<image>\nWhat?", "This") for i in range(5)])
SHAPES = ["[" * 100_000, "1" * 10_000, "[1e999, NaN]", "", "\0", "null", '"rows"', "{}", '{"rows": []}']
CSV, WIDE = "image_path,text_en\na.png,b\n", ("utf-16", "utf-16-le", "utf-32", "cp037")
WRONG: list[tuple[Callable[[Path], Path], str]] = [
    (partial(_link_out, name="elsewhere.json"), ": a link that leaves"),
    *[(partial(_csv, text=CSV, encoding=code), "(?=.*image_path).*UTF-8") for code in WIDE],
    (partial(_csv, text="path,text\na,b\n"), ": column image_path is missing"),
    *[(partial(_json, text=ROWS[:-cut]), "line 1: ") for cut in (1, 7, 40, 200)],
    *[(partial(_json, text=text), "") for text in SHAPES],
    (partial(_json, text='[{"id": "1", "picture": "a", "conversations": []}]'), "column image is missing"),
    (partial(_parquet, long_answer=None), ": column long_answer is missing"),
    (partial(_parquet, long_answer=None, longAnswer=pa.string()), ": column long_answer is missing"),
    (partial(_parquet, pubid=None), ": column pubid is missing"),
    (partial(_damaged, damage=lambda data: b"a,b\n1,2\n"), "parquet"),
    (partial(_damaged, damage=lambda data: data[:-40]), "parquet"),
    (partial(_damaged, damage=lambda data: data[:200] + bytes(3800) + data[4000:]), "parquet"),
]


@pytest.mark.parametrize(("write", "says"), WRONG)
def test_a_damaged_file_or_one_of_another_shape_is_named(tmp_path: Path, write: Callable, says: str) -> None:
    path = write(tmp_path / "data")
    assert re.search(f"{re.escape(str(path))}.*{says}", error_of(tmp_path / "data"))


@pytest.mark.parametrize(
    ("kind", "row"), [(pa.binary(), {"question": b"Is it?"}), (pa.float64(), {"question": 1.5})]
)
def test_a_column_of_another_type_rejects_its_rows(tmp_path: Path, kind: pa.DataType, row: dict) -> None:
    path = _parquet(tmp_path, question=kind)
    pq.write_table(pa.Table.from_pylist([GOOD | row], pq.read_schema(path)), path)
    assert rejects_of(tmp_path) == {"1": "wrong_type"}


def test_a_picture_column_may_hold_bytes_or_paths(tmp_path: Path) -> None:
    path = write_roco(tmp_path, [])
    (path.parent / "x.png").write_bytes(picture())
    columns = {"bytes": [picture()], "number": [7.5], "path": ["x.png"], "gone": ["y.png"]}
    for name, image in columns.items():
        table = pa.table({"image": image, "image_id": [name], "caption": ["A chest"]})
        pq.write_table(table, path.with_name(f"test-{name}.parquet"))
    assert rejects_of(tmp_path) == {"number": "wrong_type", "gone": "image_missing"}
    assert set(rows_of(tmp_path, "roco")) == {"bytes", "path"}


def test_a_dataset_folder_of_another_layout_is_named(tmp_path: Path) -> None:
    (tmp_path / "PubMedQA").mkdir()
    assert "pqa_*/*.parquet" in error_of(tmp_path)


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
    rows = [{"pubid": i, "question": text, "long_answer": text} for i, text in enumerate(texts.values())]
    write_pubmedqa(tmp_path, rows)
    assert rejects_of(tmp_path, "tokenize", tokenizer=sample_data / "tokenizer") == {}
    kept = [row["prompt"] for row in rows_of(tmp_path, "pubmedqa").values()]
    assert kept == [text.strip() for text in texts.values()]
    tokenizer = JanusTokenizer(sample_data / "tokenizer")
    special = tokenizer.special
    tokens = read_table(tmp_path / "work/tokenize/pubmedqa-00000.arrow")
    assert tokens.schema == TOKEN_SCHEMA
    every = {getattr(special, name) for name in SPECIAL_NAMES}
    for (name, text), row in zip(texts.items(), tokens.to_pylist(), strict=True):
        structure = [i for i in row["input_ids"] if i in every]
        assert structure == [special.bos, special.user, special.assistant, special.eos], name
        (span,) = row["supervised"]
        *ids, last = row["input_ids"][span["start"] : span["end"]]
        assert last == special.eos
        assert tokenizer.decode(ids).strip() == text.strip()


def test_texts_that_say_nothing_or_are_damaged_are_rejected(tmp_path: Path, sample_data: Path) -> None:
    bad = {
        "empty_question": ["", " ", "\u00a0\u2003\u3000", "\n\t\r\x0b\x0c", "\u2028\u0085\x1f", None],
        "invalid_text": ["NUL \0 inside?", "\0"],
        "too_long": ["word " * 20_000, "x" * 100_000, "\u0301" * 50_000, "猫" * 35_000],
    }
    expected, rows = {}, [{**GOOD, "pubid": 999}]
    for i, (reason, text) in enumerate((reason, text) for reason, texts in bad.items() for text in texts):
        rows.append({"pubid": i, "question": text, "long_answer": "yes"})
        rows.append({"pubid": 100 + i, "question": f"Q{i}?", "long_answer": text})
        expected |= {str(i): reason, str(100 + i): reason.replace("question", "answer")}
    write_pubmedqa(tmp_path, rows)
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
