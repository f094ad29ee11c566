"""Raw files as they come: dirty rows are set aside with their reason, wrong files are named."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
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

from pipelines.tables import read_table


def ingest(data: Path, work: Path) -> dict[str, str]:
    """source_key → reason of the rows set aside."""
    run_well("ingest", "--data", data, "--work", work, "--max-reject-rate", 1)
    rejects = pl.DataFrame(pl.from_arrow(read_table(work / "rejects.arrow")))
    return dict(rejects.select("source_key", "reason").iter_rows())


def rows_of(work: Path, source: str) -> list[dict]:
    return read_table(work / "ingest" / f"{source}.rows.arrow").to_pylist()


def test_pubmedqa_takes_question_and_long_answer_and_strips(tmp_path: Path) -> None:
    answers = {1: " Yes, it is.\n", 2: "", 3: "  ", 4: None}
    rows = [{"pubid": k, "question": f" Is it {k}? ", "long_answer": v} for k, v in answers.items()]
    write_pubmedqa(tmp_path, [*rows, {"pubid": 5, "question": None, "long_answer": "a"}])
    rejects = ingest(tmp_path, tmp_path / "work")
    assert rejects == {"2": "empty_answer", "3": "empty_answer", "4": "empty_answer", "5": "empty_question"}
    (row,) = rows_of(tmp_path / "work", "pubmedqa")
    assert (row["prompt"], row["answer"], row["task"]) == ("Is it 1?", "Yes, it is.", "text")
    assert row["split"] is None


def test_text_that_is_not_utf8_is_set_aside(tmp_path: Path) -> None:
    question = pa.array([b"fine?", b"bro\xffken?"], pa.binary())
    strings = pa.StringArray.from_buffers(2, question.buffers()[1], question.buffers()[2])
    table = pa.table(
        {"pubid": pa.array([1, 2], pa.int32()), "question": strings, "long_answer": pa.array(["a", "b"])}
    )
    path = write_pubmedqa(tmp_path, [])
    pq.write_table(table, path)
    assert ingest(tmp_path, tmp_path / "work") == {"2": "invalid_text"}


def test_repeated_keys_are_set_aside(tmp_path: Path) -> None:
    write_pubmedqa(tmp_path, [{"pubid": 7, "question": q, "long_answer": "a"} for q in ("One?", "Two?")])
    assert ingest(tmp_path, tmp_path / "work") == {"7": "duplicate_id"}


def test_conversations_markers_and_types(tmp_path: Path) -> None:
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
        vqa_row("blank", "a.png", "<image>\nOne?", "  "),
        vqa_row("surrogate", "a.png", "<image>\nOne?", "\ud800"),
        vqa_row("gone", "gone.png", "<image>\nOne?", "1"),
        vqa_row("before", "a.png", "<image>\nAnother wording?", "This"),
        "not a row",
        {"id": "empty", "image": "a.png", "conversations": []},
    ]
    write_medical_vqa(tmp_path, rows, {"a.png": picture()})
    assert ingest(tmp_path, tmp_path / "work") == {
        **dict.fromkeys(("none", "two", "inline", "later"), "wrong_image_marker"),
        **dict.fromkeys(("float", "bool", "row 14"), "wrong_type"),
        **dict.fromkeys(("order", "empty"), "wrong_turns"),
        "blank": "empty_answer",
        "surrogate": "invalid_text",
        "gone": "image_missing",
    }
    kept = {row["source_key"]: row for row in rows_of(tmp_path / "work", "medical-vqa")}
    assert list(kept) == ["before", "after", "turns", "before#2"]
    assert kept["before"]["prompt"] == "What?"
    assert (kept["after"]["prompt"], kept["after"]["answer"]) == ("Where?", "3")
    assert kept["turns"]["prompt"] == "Three?"
    assert [turn["user"] for turn in kept["turns"]["history"]] == ["One?", "Two?"]
    assert read_table(tmp_path / "work" / "ingest" / "understanding.images.arrow").num_rows == 1


def test_paths_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    names = ["../../../secret.png", str(secret), "link.png", "..\\secret.png", "nul\0.png", "x" * 300]
    rows = [vqa_row(f"v{i}", name, "<image>\nWhat?", "This") for i, name in enumerate(names)]
    table = write_medical_vqa(tmp_path, rows, {})
    (table.parents[1] / "images" / "link.png").symlink_to(secret)
    write_artwork(
        tmp_path, b"image_path,text_en\n../secret.png,a thing\n./jade/images/0.png,b\n", {"0.png": picture()}
    )
    rejects = ingest(tmp_path, tmp_path / "work")
    assert rejects == {
        **{f"v{i}": "image_path_refused" for i in range(5)},
        "v5": "image_unreadable",
        "../secret.png": "image_path_refused",
    }
    assert secret.read_bytes() not in (tmp_path / "work/ingest/understanding.images.arrow").read_bytes()


def test_artwork_csv_with_quotes_line_breaks_and_other_encodings(tmp_path: Path) -> None:
    csv = (
        b"\xef\xbb\xbfimage_path,text_en\n"
        b'./jade/images/0.png,"a ""quoted"" thing,\nin two lines"\n'
        b"./jade/images/1.png,caf\xe9\n"
        b"./jade/images/2.png\n"
        b"./jade/images/3.png,   \n"
    )
    write_artwork(tmp_path, csv, {f"{i}.png": picture((i, 0, 0)) for i in range(4)})
    assert ingest(tmp_path, tmp_path / "work") == {
        "jade/images/1.png": "invalid_text",
        "line 5": "wrong_type",
        "jade/images/3.png": "empty_caption",
    }
    (row,) = rows_of(tmp_path / "work", "artwork")
    assert row["prompt"] == 'a "quoted" thing,\nin two lines'
    assert (row["task"], row["answer"]) == ("t2i", "")


def test_roco_keeps_upstreams_splits(tmp_path: Path) -> None:
    write_roco(tmp_path, [{"image": picture(), "image_id": "r1", "caption": " A chest. "}], "train")
    write_roco(tmp_path, [{"image": None, "image_id": "r2", "caption": "B"}], "test")
    assert ingest(tmp_path, tmp_path / "work") == {"r2": "image_missing"}
    (row,) = rows_of(tmp_path / "work", "roco")
    assert (row["split"], row["prompt"]) == ("train", "A chest.")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"pubid": pa.int32(), "question": pa.string()}, "column long_answer is missing, expected string"),
        (
            {"pubid": pa.int32(), "question": pa.int64(), "long_answer": pa.string()},
            "column question is int64",
        ),
        (
            {"pubid": pa.float64(), "question": pa.string(), "long_answer": pa.string()},
            "column pubid is double",
        ),
    ],
)
def test_a_parquet_with_wrong_columns_is_named(tmp_path: Path, schema: dict, says: str) -> None:
    path = write_pubmedqa(tmp_path, [], pa.schema(list(schema.items())))
    result = run("ingest", "--data", tmp_path, "--work", tmp_path / "work")
    assert result.exit_code == 2
    assert str(path) in result.output
    assert says in result.output


def write_broken(data: Path, what: str) -> Path:
    """A file that is not what its layout says."""
    if what == "not parquet":
        path = write_pubmedqa(data, [])
        path.write_bytes(b"a,b\n1,2\n")
    elif what == "cut parquet":
        path = write_pubmedqa(
            data, [{"pubid": i, "question": f"q{i}", "long_answer": "a"} for i in range(99)]
        )
        path.write_bytes(path.read_bytes()[:-40])
    elif what == "cut JSON":
        path = write_medical_vqa(data, [], {})
        path.write_text('[{"id": "1", "image"')
    elif what == "JSON object":
        path = write_medical_vqa(data, {"rows": []}, {})
    elif what == "renamed field":
        path = write_medical_vqa(data, [{"id": "1", "picture": "a", "conversations": []}], {})
    else:
        path = write_artwork(data, b"path,text\na,b\n", {})
    return path


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("not parquet", "not a whole parquet file"),
        ("cut parquet", "not a whole parquet file"),
        ("cut JSON", "not a whole JSON file"),
        ("JSON object", "expected a list of rows"),
        ("renamed field", "field image is missing in every row"),
        ("renamed column", "column image_path is missing"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(tmp_path: Path, what: str, says: str) -> None:
    path = write_broken(tmp_path, what)
    result = run("ingest", "--data", tmp_path, "--work", tmp_path / "work")
    assert result.exit_code == 2
    assert str(path) in result.output
    assert says in result.output
    assert not (tmp_path / "work" / "ingest").exists()
    errors = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert len(errors) == 1


def test_a_dataset_folder_of_another_layout_is_named(tmp_path: Path) -> None:
    (tmp_path / "PubMedQA").mkdir()
    result = run("ingest", "--data", tmp_path, "--work", tmp_path / "work")
    assert result.exit_code == 2
    assert "no file matches pqa_*/*.parquet" in result.output


def test_json_numbers_as_ids_are_written_out(tmp_path: Path) -> None:
    rows = [vqa_row("1", "a.png", "<image>\nWhat?", "This")]
    rows[0]["id"] = 1  # type: ignore[assignment]
    path = write_medical_vqa(tmp_path, rows, {"a.png": picture()})
    assert json.loads(path.read_text())[0]["id"] == 1
    assert ingest(tmp_path, tmp_path / "work") == {}
    assert rows_of(tmp_path / "work", "medical-vqa")[0]["source_key"] == "1"
