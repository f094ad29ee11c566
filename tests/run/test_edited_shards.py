"""Shards or a manifest that were edited do not reach a step unless that is said, and then it is recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from runs import make_work, records
from shard_factory import make_batch
from trainer_shards import trainable_row

from shards.manifest import TOKENIZER, load_manifest, write_manifest
from shards.write import write_shards
from trainer.cli import main

SHARD = "train/text-00000.arrow"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_work(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def work(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "work"))


def _train(work: Path, *arguments: str) -> tuple[int, str]:
    given = ["--task", "text", "--model", "model", "--shards", "shards", "--mode", "pynative", "--out", "run"]
    given += ["--eval-samples", "0", "--steps", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        result = CliRunner().invoke(main, ["train", *given, *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def _edit_shard(work: Path) -> str:
    """Another word in a text: a file of the same size, readable as before."""
    path = work / "shards" / SHARD
    content = path.read_bytes()
    prompt = trainable_row("text", "train", 2)["prompt"].encode()
    assert content.count(prompt) == 1
    path.write_bytes(content.replace(prompt, prompt.upper()))
    return f"{SHARD}: row 2 (pubmedqa/train-2): content does not match its xxh3"


def _edit_manifest(work: Path) -> str:
    path = work / "shards" / "manifest.json"
    path.write_text(path.read_text().replace('"name": "test"', '"name": "tost"'))
    return "manifest.json: was edited after it was written"


def _replace_shard(work: Path) -> str:
    """Another shard of the same format, whole in itself, with a row more."""
    rows = [trainable_row("text", "train", key) for key in range(6)]
    (work / "other").mkdir()
    write_shards([make_batch(rows)], work / "other", split="train", task="text", image_size=64)
    shutil.copyfile(work / "other" / SHARD, work / "shards" / SHARD)
    return f"{SHARD}: longer than written"


@pytest.mark.parametrize("edit", [_edit_shard, _edit_manifest, _replace_shard])
def test_what_was_edited_is_named_and_refused_unless_that_is_allowed(work: Path, edit) -> None:
    named = edit(work)
    code, output = _train(work)
    assert code == 2
    assert output.count("\n") == 1
    assert named in output
    assert "(--allow-edited-shards)" in output
    assert not (work / "run").exists()

    code, output = _train(work, "--allow-edited-shards")
    assert code == 0, output
    assert named in next(line for line in output.splitlines() if line.startswith("warning: trained on as"))
    (noted,) = (record for record in records(work / "run") if record["kind"] == "edited_shards")
    assert any(named in line for line in noted["differences"])
    assert yaml.safe_load((work / "run" / "config.yaml").read_text())["allow_edited_shards"] is True


def test_shards_edited_while_a_run_is_stopped_are_another_runs(work: Path) -> None:
    assert _train(work)[0] == 0
    _edit_shard(work)
    code, output = _train(work, "--resume", "--steps", "3", "--allow-edited-shards")
    assert code == 2
    assert "shards_sha256 was " in output
    given = ["--resume", "--steps", "3", "--allow-edited-shards", "--resume-with", "shards_sha256"]
    code, output = _train(work, *given)
    assert code == 0, output
    assert [record["step"] for record in records(work / "run") if record["kind"] == "step"] == [1, 2, 3]
    (noted,) = (record for record in records(work / "run") if record["kind"] == "changed")
    assert (noted["step"], noted["field"]) == (2, "shards_sha256")
    state = json.loads((work / "run" / "checkpoints" / "step-000003" / "state.json").read_text())
    assert [change["field"] for change in state["changes"]] == ["shards_sha256"]
    assert (
        f"# from step 2 on: shards_sha256 was '{noted['old']}'" in (work / "run" / "config.yaml").read_text()
    )


def test_a_tokenizer_edited_while_a_run_is_stopped_makes_them_anothers_too(work: Path) -> None:
    """Its ids decide what is padding and what a nulled prompt is."""
    _edit_shard(work)
    assert _train(work, "--allow-edited-shards")[0] == 0
    with (work / "shards" / TOKENIZER).open("a") as file:
        file.write("\n")
    code, output = _train(work, "--resume", "--steps", "3", "--allow-edited-shards")
    assert code == 2
    assert "shards_sha256 was " in output


def test_a_row_without_supervised_tokens_is_an_error_before_the_first_step(work: Path) -> None:
    """Whole by its hashes: the row itself is what cannot be learned from."""
    row = {**trainable_row("text", "train", 0), "supervised": []}
    rows = [row, *(trainable_row("text", "train", key) for key in range(1, 5))]
    folder = work / "shards"
    (folder / SHARD).unlink()
    (entry,) = write_shards([make_batch(rows)], folder, split="train", task="text", image_size=64)
    manifest = load_manifest(folder)
    entries = tuple(entry if entry.path == old.path else old for old in manifest.shards)
    write_manifest(folder, type(manifest)(**{**vars(manifest), "shards": entries}))
    code, output = _train(work)
    assert code == 2
    assert "pubmedqa/train-0: has no supervised tokens" in output
    assert not (work / "run").exists()
