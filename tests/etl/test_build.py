"""The pipeline through its commands, on data made by hand and on the synthetic sample: the same bytes."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import raw_data
from commands import refusal
from paths import HUB, ROOT, TOKENIZERS, needs_shared
from PIL import Image
from raw_data import build_command, files_of, picture, run_well, skipped, vqa_row

from bench.demo.proof import look
from janus.images import ImagePreparation
from janus.prompts import SPLITS
from janus.tokens import SPECIAL_NAMES, JanusTokenizer
from pipelines.cli import main
from pipelines.sample.scenes import shuffled_scenes
from pipelines.stages.plan import Outputs, plan_rows
from pipelines.tables import read_table
from shards.compare.check import verify_folder
from shards.manifest import load_manifest
from shards.read import ShardSet

TOTAL = "1,123 rows read = 1,120 written + 3 "


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little of every kind: 1,100 questions, 6 pictures with 3 questions each, 3 captioned pictures."""
    data = tmp_path_factory.mktemp("raw")
    texts = [(i, f"Is {i} even?", f"{i % 2 == 0}.") for i in range(1098)]
    texts += [(2001, "Is it long?", "very " * 2000), (2002, "is 4  EVEN?", "Another answer.")]
    raw_data.write_pubmedqa(data, [{"pubid": k, "question": q, "long_answer": a} for k, q, a in texts])
    colours = {f"{i}.png": picture((40 * i, 99, 9), (50 + i, 40)) for i in range(6)}
    names = [f"{q} in picture {i}" for i in range(6) for q in range(3)]
    asked = [(f"What is {name}?", f"{name[-1]}.png", f"thing {name[0]}") for name in [*names, names[0]]]
    asked += [("What?", "gone.png", "nothing")]
    rows = [vqa_row(f"{k}", image, f"<image>\n{q}", answer) for k, (q, image, answer) in enumerate(asked)]
    raw_data.write_medical_vqa(data, rows, colours)
    artworks = {f"{i}.png": picture((9, 60 * i, 200), (64, 48)) for i in range(3)}
    csv = "image_path,text_en\n" + "".join(f"./jade/images/{i}.png,caption {i}\n" for i in range(3))
    raw_data.write_artwork(data, csv.encode(), artworks)
    return data


@pytest.fixture(scope="module")
def command(raw: Path, sample_data: Path) -> Callable[..., list[object]]:
    return lambda root, *more: build_command(raw, root, sample_data / "tokenizer", *more)


@pytest.fixture(scope="module")
def built(command: Callable[..., list[object]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by two workers; the folder holds work/ and shards/, and `log` what was printed."""
    root = tmp_path_factory.mktemp("built")
    (root / "log").write_text(run_well(*command(root, "--workers", 2)), encoding="utf-8")
    return root


@pytest.fixture
def again(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built / "work", tmp_path / "work")
    return tmp_path


def test_every_row_is_written_or_explained(built: Path) -> None:
    manifest = load_manifest(built / "shards")
    counts = {name: (c.read, dict(c.rejected), c.written) for name, c in manifest.counts.items()}
    assert counts == {
        "pubmedqa": (1100, {"too_long": 1}, 1099),
        "medical-vqa": (20, {"image_missing": 1, "duplicate": 1}, 18),
        "artwork": (3, {}, 3),
    }
    explained = {("too_long", "2001"), ("image_missing", "19"), ("duplicate", "18")}
    for rejects in (manifest.recipe["reject_examples"], read_table(built / "work/rejects.arrow").to_pylist()):
        assert {(row["reason"], row["source_key"]) for row in rejects} == explained
    log = (built / "log").read_text(encoding="utf-8")
    assert TOTAL in log
    assert "image codes are of random weights" in log  # there was no checkpoint
    assert (manifest.vq or {})["weights"] == "random"


def rows_of(root: Path, task: str) -> pl.DataFrame:
    return pl.scan_ipc(f"{root / 'shards'}/*/{task}-*.arrow").collect()


def pictures_of(root: Path) -> dict[str, list[str]]:
    """The names of the pictures of each kind."""
    files = sorted((root / "shards" / "pictures").glob("*.arrow"))
    return {path.name.partition("-")[0]: pl.read_ipc(path)["image_sha256"].to_list() for path in files}


def test_polars_reads_all_shards_and_codes_are_there(built: Path) -> None:
    text, vqa, t2i = (rows_of(built, task) for task in ("text", "vqa", "t2i"))
    ids = pl.concat([rows["sample_id"] for rows in (text, vqa, t2i)])
    assert (len(ids), ids.n_unique()) == (1120, 1120)
    assert t2i["image_tokens"].list.len().to_list() == [576] * 3
    shown = vqa["messages"].list.first().struct.field("pictures").list.first()
    held = pictures_of(built)["understanding"]
    assert (len(shown), len(held), set(shown)) == (18, 6, set(held))  # each once
    assert pictures_of(built).keys() == {"understanding"}
    both = text.filter(pl.col("prompt").str.to_lowercase().str.replace_all(r"\s+", " ") == "is 4 even?")
    assert (both.height, both["split"].n_unique()) == (2, 1)
    assert verify_folder(built / "shards") == []


def test_a_second_run_skips_every_stage(built: Path, command: Callable) -> None:
    before = {p: p.stat().st_mtime_ns for p in built.rglob("*") if p.suffix in (".arrow", ".json")}
    before.pop(built / "work" / "rejects.arrow")
    log = run_well(*command(built, "--workers", 1))
    assert skipped(log) == ["ingest", "tokenize", "images", "vq", "write"]
    assert TOTAL in log
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_workers_do_not_change_the_bytes(built: Path, command: Callable, tmp_path: Path) -> None:
    shutil.copytree(built / "work" / "vq", tmp_path / "work" / "vq")  # codes have no workers
    assert skipped(run_well(*command(tmp_path, "--workers", 1))) == ["vq"]
    assert files_of(tmp_path / "shards") == files_of(built / "shards")


@pytest.mark.parametrize(
    ("options", "unchanged"),
    [
        (("--seed", 1, "--keep-images"), "ingest tokenize images vq"),
        (("--max-length", 900), "ingest images vq"),
        (("--train-begin",), "ingest images vq"),
        (("--strict-size",), "ingest tokenize"),
    ],
)
def test_only_what_depends_on_a_change_runs_again(
    again: Path, command: Callable, options: tuple, unchanged: str
) -> None:
    assert skipped(run_well(*command(again, *options))) == unchanged.split()
    drawn = 0 if "--strict-size" in options else 3
    assert (
        len(rows_of(again, "t2i")) == drawn
        if drawn
        else not (again / "shards/train/t2i-00000.arrow").exists()
    )
    assert len(pictures_of(again).get("generation", [])) == (3 if "--keep-images" in options else 0)
    shutil.rmtree(again / "shards")
    run_well(*command(again, *options))
    assert (again / "shards" / "manifest.json").is_file()


def test_raw_pixels_are_the_same_pictures_and_change_no_row(
    built: Path, again: Path, command: Callable
) -> None:
    assert skipped(run_well(*command(again, "--pixels", "raw"))) == ["ingest", "tokenize"]
    coded, raw = (files_of(root / "shards") for root in (built, again))
    assert {name for name in coded if coded[name] != raw[name]} == {
        "manifest.json",
        "pictures/understanding-00000.arrow",
    }
    names = pictures_of(built)["understanding"]
    opened = [ShardSet.open(root / "shards") for root in (built, again)]
    np.testing.assert_array_equal(*(shards.pictures["understanding"].read(names) for shards in opened))
    small, large = (shards.manifest.pictures[0].bytes for shards in opened)
    assert 10 * small < 6 * 3 * 384**2 < large  # they are of one colour each


def test_webdataset_holds_the_same_samples(built: Path, again: Path, command: Callable) -> None:
    run_well(*command(again, "--format", "webdataset"))
    arrow, tar = (ShardSet.open(root / "shards") for root in (built, again))
    assert arrow.splits_tasks() == tar.splits_tasks()
    for pair in arrow.splits_tasks():
        one, other = arrow.rows(*pair), tar.rows(*pair)
        assert len(one) == len(other)
        for i in range(len(one)):
            np.testing.assert_equal(vars(one.read(i)), vars(other.read(i)))


def test_too_many_rejects_stop_the_build(tmp_path: Path, sample_data: Path) -> None:
    """Pictures that medical-vqa lacks do not count."""
    answers = ["yes" if i % 10 else " " for i in range(40)]
    rows = [{"pubid": i, "question": f"Is it {i}?", "long_answer": text} for i, text in enumerate(answers)]
    raw_data.write_pubmedqa(tmp_path, rows)
    questions = [vqa_row(str(i), f"{i}.png", f"<image>\nWhat is {i}?", "This") for i in range(20)]
    raw_data.write_medical_vqa(tmp_path, questions, {})
    build = build_command(tmp_path, tmp_path, sample_data / "tokenizer")
    for _ in range(2):  # the second run skips ingest, and must stop all the same
        line = refusal(main, *build)
        assert "4 of 40 rows cannot be used" in line
        assert "empty_answer (4)" in line
    assert not (tmp_path / "shards").exists()
    run_well(*build, "--max-reject-rate", 0.1)


def test_what_cannot_be_built_is_said_in_one_line(tmp_path: Path, sample_data: Path) -> None:
    work, tokenizer = tmp_path / "work", sample_data / "tokenizer"
    line = refusal(main, "ingest", "--data", tmp_path / "nowhere", "--work", work)
    assert "pipelines sample" in line
    line = refusal(main, "tokenize", "--work", work, "--tokenizer", tokenizer)
    assert "stage ingest has not run" in line
    line = refusal(main, *build_command(sample_data, tmp_path, tokenizer, "--model", "tinny"))
    assert "neither a folder nor a preset" in line


def planned(data: Path, work: Path, tokenizer: Path) -> tuple[Counter, list[str]]:
    """Rows per task and side, none of them rejected, and the sources that were divided."""
    run_well("ingest", "--data", data, "--work", work)
    for stage in ("tokenize", "images"):
        run_well(stage, "--work", work, "--tokenizer", tokenizer)
    plan, rejected, divided = plan_rows(Outputs.of(work, ("ingest", "tokenize", "images")), 0, 0.05)
    assert rejected.height == 0
    return Counter(plan.select("task", "side").iter_rows()), divided


@pytest.mark.slow
@needs_shared
def test_real_samples_are_counted(tmp_path: Path) -> None:
    plan, divided = planned(HUB, tmp_path, TOKENIZERS / "janus-pro-1b")
    assert [sum(plan[task, side] for side in SPLITS) for task in ("text", "vqa", "t2i")] == [1000, 1794, 44]
    (missing,) = read_table(tmp_path / "rejects.arrow").to_pylist()
    reasons = [missing[name] for name in ("source", "source_key", "reason")]
    assert reasons == ["medical-vqa", "missing-0", "image_missing"]
    assert divided == ["roco"]
    assert [plan["t2i", side] for side in ("train", "validation", "test")] == [25, 1, 18]
    assert plan["text", "validation"] == 50
    assert 90 <= plan["vqa", "validation"] <= 180


def test_the_seed_decides_every_byte(sample_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "sample", "--data", str(tmp_path / "again")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert files_of(tmp_path / "again") == files_of(sample_data)
    run_well("sample", "--data", tmp_path / "other", "--seed", 1)
    assert files_of(tmp_path / "other") != files_of(sample_data)


def test_each_task_gets_enough_validation_rows(sample_data: Path, tmp_path: Path) -> None:
    plan, _ = planned(sample_data, tmp_path, sample_data / "tokenizer")
    for task in ("text", "vqa", "t2i"):
        assert plan[task, "validation"] >= 20
        assert plan[task, "train"] >= 50


def test_the_sample_lacks_one_picture_and_drug_answers_follow_from_names(sample_data: Path) -> None:
    tables = sorted(sample_data.glob("medical-vqa/*/train/dataset.json"))
    rows = [row for table in tables for row in json.loads(table.read_text())]
    names = {p.name for p in sample_data.glob("medical-vqa/*/images/*")}
    assert [row["id"] for row in rows if row["image"] not in names] == ["missing-0"]
    assert {len(row["conversations"]) for row in rows} == {2, 4}
    assert any(isinstance(turn["value"], int) for row in rows for turn in row["conversations"])
    drugs = pl.read_parquet(sample_data / "PubMedQA" / "pqa_labeled" / "*.parquet").select(
        ending=pl.col("question").str.extract(r"^Does \w{4}r(\w+) relieve", 1),
        kind=pl.col("long_answer").str.extract(r"is (.*?)\.", 1),
    )
    endings = drugs.drop_nulls("ending").unique()
    assert (endings["ending"].n_unique(), endings.height) == (8, 8)


def test_the_tokenizer_is_small_and_has_every_special_token(sample_data: Path) -> None:
    tokenizer = JanusTokenizer(sample_data / "tokenizer")
    specials = [getattr(tokenizer.special, name) for name in SPECIAL_NAMES]
    text = "Does Bador relieve influenza? Ünïcode 图 \x00 too."
    (ids,) = tokenizer.encode_texts([text])
    assert tokenizer.decode(ids) == text
    assert max(ids) < min(specials)
    assert tokenizer.highest_id < 1100
    assert ImagePreparation.from_folder(sample_data / "tokenizer") == ImagePreparation()


@needs_shared
def test_the_tokenizer_folder_is_shaped_like_a_real_one(sample_data: Path) -> None:
    def content(name: str) -> list[dict]:
        folders = (sample_data / "tokenizer", TOKENIZERS / "janus-pro-1b")
        return [json.loads((folder / name).read_text()) for folder in folders]

    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
        ours, theirs = content(name)
        assert ours == theirs
    tokens = [set(some["additional_special_tokens"]) for some in content("special_tokens_map.json")]
    assert tokens[0] >= tokens[1]


def test_a_second_call_does_nothing_and_other_files_are_left_alone(sample_data: Path, tmp_path: Path) -> None:
    assert "unchanged, skipped" in run_well("sample", "--data", sample_data)
    (tmp_path / "PubMedQA").mkdir()
    assert "holds other files" in refusal(main, "sample", "--data", tmp_path)
    assert "synthetic sample" in refusal(main, "download", "--data", sample_data)


def test_download_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    line = refusal(main, "download", "--data", tmp_path / "hub", "--source", "roco")
    assert "ROCO-radiology by hand" in line
    assert "secret" not in line


def test_every_scene_is_recognised_sharp_and_in_the_blocks_of_its_codes() -> None:
    for scene in shuffled_scenes(0):
        picture = scene.draw()
        assert look(np.asarray(picture)) == scene
        blocks = picture.resize((24, 24), Image.Resampling.BOX).resize((384, 384), Image.Resampling.NEAREST)
        assert look(np.asarray(blocks)) == scene
    assert look(np.full((384, 384, 3), 128, np.uint8)) is None  # no figure
