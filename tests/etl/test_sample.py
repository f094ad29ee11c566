"""The synthetic data set: the same every time, usable from end to end, never over other files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
from paths import ROOT, TOKENIZERS, needs_shared
from PIL import Image
from raw_data import files_of, run, run_well, stages_of

from janus.images import ImagePreparation
from janus.tokens import SPECIAL_NAMES, JanusTokenizer
from pipelines.sample.scenes import look, shuffled_scenes
from pipelines.stages.write import plan_rows


def test_the_seed_decides_every_byte(sample_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "sample", "--data", str(tmp_path / "again")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert files_of(tmp_path / "again") == files_of(sample_data)
    run_well("sample", "--data", tmp_path / "other", "--seed", 1)
    assert files_of(tmp_path / "other") != files_of(sample_data)


def test_each_task_gets_enough_validation_rows(sample_data: Path, tmp_path: Path) -> None:
    tokenizer = sample_data / "tokenizer"
    run_well("ingest", "--data", sample_data, "--work", tmp_path)
    run_well("tokenize", "--work", tmp_path, "--tokenizer", tokenizer)
    run_well("images", "--work", tmp_path, "--tokenizer", tokenizer)
    plan, set_aside, _ = plan_rows(tmp_path, stages_of(tmp_path), 0, 0.05)
    assert set_aside.num_rows == 0
    sides = {(t, s): n for t, s, n in plan.group_by("task", "side").len().iter_rows()}
    assert all(sides[task, "validation"] >= 20 for task in ("text", "vqa", "t2i"))
    assert all(sides[task, "train"] >= 50 for task in ("text", "vqa", "t2i"))


def test_one_question_lacks_its_picture_and_answers_may_be_numbers(sample_data: Path) -> None:
    tables = [json.loads(p.read_text()) for p in sorted(sample_data.glob("medical-vqa/*/train/dataset.json"))]
    rows = [row for table in tables for row in table]
    names = {p.name for p in sample_data.glob("medical-vqa/*/images/*")}
    assert [row["id"] for row in rows if row["image"] not in names] == ["missing-0"]
    assert {len(row["conversations"]) for row in rows} == {2, 4}
    assert any(isinstance(turn["value"], int) for row in rows for turn in row["conversations"])


def test_drug_answers_follow_from_the_name(sample_data: Path) -> None:
    rows = pl.read_parquet(sample_data / "PubMedQA" / "pqa_labeled" / "*.parquet")
    endings = rows.filter(pl.col("question").str.starts_with("Does")).select(
        ending=pl.col("question").str.extract(r"Does \w{4}r(\w+) relieve", 1),
        kind=pl.col("long_answer").str.extract(r"is (.*?)\.", 1),
    )
    assert endings["ending"].n_unique() == 8
    assert endings.unique().height == 8


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
    real = TOKENIZERS / "janus-pro-1b"
    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json"):
        assert json.loads((sample_data / "tokenizer" / name).read_text()) == json.loads(
            (real / name).read_text()
        )
    ours, theirs = (
        json.loads((folder / "special_tokens_map.json").read_text())
        for folder in (sample_data / "tokenizer", real)
    )
    assert set(theirs["additional_special_tokens"]) <= set(ours["additional_special_tokens"])


def test_a_second_call_does_nothing_and_other_files_are_left_alone(sample_data: Path, tmp_path: Path) -> None:
    assert "unchanged, skipped" in run_well("sample", "--data", sample_data)
    (tmp_path / "PubMedQA").mkdir()
    result = run("sample", "--data", tmp_path)
    assert result.exit_code == 2
    assert "holds other files" in result.output
    result = run("download", "--data", sample_data)
    assert result.exit_code == 2
    assert "synthetic sample" in result.output


def test_download_without_a_network_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    result = run("download", "--data", tmp_path / "hub", "--source", "roco")
    assert result.exit_code == 2
    assert "ROCO-radiology by hand" in result.output
    assert "secret" not in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_every_scene_is_recognised_sharp_and_in_the_blocks_of_its_codes() -> None:
    for scene in shuffled_scenes(0):
        picture = scene.draw()
        assert look(np.asarray(picture)) == scene
        blocks = picture.resize((24, 24), Image.Resampling.BOX).resize((384, 384), Image.Resampling.NEAREST)
        assert look(np.asarray(blocks)) == scene
    assert look(np.full((384, 384, 3), 128, np.uint8)) is None  # no figure
