"""The whole pipeline through its commands: skipped when unchanged, the same for any workers, counted."""

import shutil
from pathlib import Path

import polars as pl
import pytest
from paths import HUB, TOKENIZERS, needs_shared
from raw_data import (
    build_command,
    files_of,
    picture,
    run,
    run_well,
    skipped,
    stages_of,
    vqa_row,
    write_artwork,
    write_medical_vqa,
    write_pubmedqa,
)

from pipelines.stages.write import plan_rows
from pipelines.tables import read_table
from shards.check import verify_folder
from shards.manifest import load_manifest
from shards.read import ShardSet


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little of every kind: 1,100 questions, 6 pictures with 3 questions each, 3 captioned pictures."""
    data = tmp_path_factory.mktemp("raw")
    texts = [{"pubid": i, "question": f"Is {i} even?", "long_answer": f"{i % 2 == 0}."} for i in range(1098)]
    texts += [
        {"pubid": 2001, "question": "Is it long?", "long_answer": "very " * 2000},
        {"pubid": 2002, "question": "is 4  EVEN?", "long_answer": "Another answer."},
    ]
    write_pubmedqa(data, texts)
    colours = {f"{i}.png": picture((40 * i, 99, 9), (50 + i, 40)) for i in range(6)}
    rows = [
        vqa_row(f"{i}-{q}", f"{i}.png", f"<image>\nWhat is {q} in picture {i}?", f"thing {q}")
        for i in range(6)
        for q in range(3)
    ]
    rows += [vqa_row("again", "0.png", "<image>\nWhat is 0 in picture 0?", "thing 0")]
    rows += [vqa_row("gone", "gone.png", "<image>\nWhat?", "nothing")]
    write_medical_vqa(data, rows, colours)
    csv = "image_path,text_en\n" + "".join(f"./jade/images/{i}.png,caption {i}\n" for i in range(3))
    write_artwork(data, csv.encode(), {f"{i}.png": picture((9, 60 * i, 200), (64, 48)) for i in range(3)})
    return data


@pytest.fixture(scope="module")
def built(raw: Path, sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by two workers; the folder holds work/ and shards/, and `log` what was printed."""
    root = tmp_path_factory.mktemp("built")
    log = run_well(*build_command(raw, root, sample_data / "tokenizer", "--workers", 2))
    (root / "log").write_text(log, encoding="utf-8")
    return root


def test_every_row_is_written_or_explained(built: Path) -> None:
    manifest = load_manifest(built / "shards")
    counts = {name: (c.read, dict(c.rejected), c.written) for name, c in manifest.counts.items()}
    assert counts == {
        "pubmedqa": (1100, {"too_long": 1}, 1099),
        "medical-vqa": (20, {"image_missing": 1, "duplicate": 1}, 18),
        "artwork": (3, {}, 3),
    }
    examples = {(e["reason"], e["source_key"]) for e in manifest.recipe["reject_examples"]}
    assert examples == {("too_long", "2001"), ("image_missing", "gone"), ("duplicate", "again")}
    rejects = read_table(built / "work" / "rejects.arrow")
    assert sorted(rejects["reason"].to_pylist()) == ["duplicate", "image_missing", "too_long"]
    log = (built / "log").read_text(encoding="utf-8")
    assert "1,123 rows read = 1,120 written + 3 set aside" in log
    assert "image codes are of random weights" in log  # there was no checkpoint
    assert manifest.vq is not None
    assert manifest.vq["weights"] == "random"


def test_polars_reads_all_shards_and_codes_are_there(built: Path) -> None:
    rows = pl.scan_ipc(f"{built / 'shards'}/**/*.arrow").collect()
    assert rows.height == 1120
    assert rows["sample_id"].is_unique().all()
    t2i = rows.filter(pl.col("task") == "t2i")
    assert t2i["image_tokens"].list.len().to_list() == [576] * 3
    assert t2i["image"].null_count() == 3
    vqa = rows.filter(pl.col("task") == "vqa")
    assert (vqa["image"].bin.size() == 384 * 384 * 3).all()
    both = rows.filter(pl.col("prompt").str.to_lowercase().str.replace_all(r"\s+", " ") == "is 4 even?")
    assert both.height == 2
    assert both["split"].n_unique() == 1
    assert verify_folder(built / "shards") == []


def test_a_second_run_skips_every_stage(built: Path, raw: Path, sample_data: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in built.rglob("*") if p.suffix in (".arrow", ".json")}
    before.pop(built / "work" / "rejects.arrow")
    log = run_well(*build_command(raw, built, sample_data / "tokenizer", "--workers", 1))
    assert skipped(log) == ["ingest", "tokenize", "images", "vq", "write"]
    assert "1,123 rows read = 1,120 written + 3 set aside" in log
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_any_number_of_workers_gives_the_same_bytes(
    built: Path, raw: Path, sample_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(built / "work" / "vq", tmp_path / "work" / "vq")  # codes have no workers
    log = run_well(*build_command(raw, tmp_path, sample_data / "tokenizer", "--workers", 1))
    assert skipped(log) == ["vq"]
    assert files_of(tmp_path / "shards") == files_of(built / "shards")


def test_only_what_depends_on_a_change_runs_again(
    built: Path, raw: Path, sample_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(built / "work", tmp_path / "work")
    tokenizer = sample_data / "tokenizer"
    log = run_well(*build_command(raw, tmp_path, tokenizer, "--seed", 1, "--keep-images"))
    assert skipped(log) == ["ingest", "tokenize", "images", "vq"]
    t2i = pl.scan_ipc(f"{tmp_path / 'shards'}/**/*.arrow").filter(pl.col("task") == "t2i").collect()
    assert (t2i["image"].bin.size() == 384 * 384 * 3).all()
    log = run_well(*build_command(raw, tmp_path, tokenizer, "--seed", 1, "--max-length", 900))
    assert skipped(log) == ["ingest", "images", "vq"]
    shutil.rmtree(tmp_path / "shards")
    run_well(*build_command(raw, tmp_path, tokenizer, "--seed", 1, "--max-length", 900))
    assert (tmp_path / "shards" / "manifest.json").is_file()


def test_webdataset_holds_the_same_samples(built: Path, raw: Path, sample_data: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "work", tmp_path / "work")
    run_well(*build_command(raw, tmp_path, sample_data / "tokenizer", "--format", "webdataset"))
    arrow, tar = ShardSet.open(built / "shards"), ShardSet.open(tmp_path / "shards")
    assert arrow.splits_tasks() == tar.splits_tasks()
    for split, task in arrow.splits_tasks():
        one, other = arrow.rows(split, task), tar.rows(split, task)
        assert len(one) == len(other)
        assert all(one.read(i).sha256 == other.read(i).sha256 for i in range(len(one)))


def test_too_many_rejects_stop_the_build(tmp_path: Path, sample_data: Path) -> None:
    """Pictures that medical-vqa lacks do not count."""
    answers = ["yes" if i % 10 else " " for i in range(40)]
    rows = [{"pubid": i, "question": f"Is it {i}?", "long_answer": text} for i, text in enumerate(answers)]
    write_pubmedqa(tmp_path, rows)
    questions = [vqa_row(str(i), f"{i}.png", f"<image>\nWhat is {i}?", "This") for i in range(20)]
    write_medical_vqa(tmp_path, questions, {})
    build = build_command(tmp_path, tmp_path, sample_data / "tokenizer")
    for _ in range(2):  # the second run skips ingest, and must stop all the same
        result = run(*build)
        assert result.exit_code == 2
        assert "4 of 40 rows cannot be used" in result.output
        assert "empty_answer (4)" in result.output
    assert not (tmp_path / "shards").exists()
    run_well(*build, "--max-reject-rate", 0.1)


def test_no_data_and_stages_out_of_order_are_said_in_one_line(tmp_path: Path, sample_data: Path) -> None:
    result = run("ingest", "--data", tmp_path / "nowhere", "--work", tmp_path / "work")
    assert result.exit_code == 2
    assert "pipelines sample" in result.output
    result = run("tokenize", "--work", tmp_path / "work", "--tokenizer", sample_data / "tokenizer")
    assert result.exit_code == 2
    assert "stage ingest has not run" in result.output
    result = run(*build_command(sample_data, tmp_path, sample_data / "tokenizer", "--model", "tinny"))
    assert result.exit_code == 2
    assert "neither a folder nor a preset" in result.output


def test_shards_never_replace_a_folder_of_something_else(tmp_path: Path, sample_data: Path) -> None:
    write_pubmedqa(tmp_path, [{"pubid": 1, "question": "Is it?", "long_answer": "yes"}])
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "thesis.txt").write_text("irreplaceable")
    result = run(*build_command(tmp_path, tmp_path, sample_data / "tokenizer"))
    assert result.exit_code == 2
    assert (tmp_path / "shards" / "thesis.txt").read_text() == "irreplaceable"


@pytest.mark.slow
@needs_shared
def test_real_samples_are_counted(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS / "janus-pro-1b"
    run_well("ingest", "--data", HUB, "--work", tmp_path)
    run_well("tokenize", "--work", tmp_path, "--tokenizer", tokenizer)
    run_well("images", "--work", tmp_path, "--tokenizer", tokenizer)
    plan, set_aside, divided = plan_rows(tmp_path, stages_of(tmp_path), 0, 0.05)
    counts = dict(plan.group_by("task").len().iter_rows())
    assert counts == {"text": 1000, "vqa": 1794, "t2i": 44}
    assert set_aside.num_rows == 0
    rejects = read_table(tmp_path / "rejects.arrow").to_pylist()
    assert [(r["source"], r["source_key"], r["reason"]) for r in rejects] == [
        ("medical-vqa", "missing-0", "image_missing")
    ]
    sides = {(t, s): n for t, s, n in plan.group_by("task", "side").len().iter_rows()}
    assert divided == ["roco"]
    assert (sides["t2i", "train"], sides["t2i", "validation"], sides["t2i", "test"]) == (25, 1, 18)
    assert sides["text", "validation"] == 50
    assert 90 <= sides["vqa", "validation"] <= 180
