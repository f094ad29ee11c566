"""Edited shards are refused before the first step; other shards, whole in themselves, are another run's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
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
    options = ["--task", "text", "--model", "model", "--shards", "shards", "--mode", "pynative"]
    options += ["--out", "run", "--eval-samples", "0", "--steps", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        result = CliRunner().invoke(main, ["train", *options, *arguments])
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
    return f"{SHARD}: row 2 (pubmedqa/train-2)"


def _edit_manifest(work: Path) -> str:
    path = work / "shards" / "manifest.json"
    path.write_text(path.read_text().replace('"name": "test"', '"name": "tost"'))
    return "manifest.json"


def _edit_tokenizer(work: Path) -> str:
    """Its ids decide what is padding and what a nulled prompt is."""
    with (work / "shards" / TOKENIZER).open("a") as file:
        file.write("\n")
    return TOKENIZER


def _replace_shard(work: Path) -> str:
    """Another shard of the same format, whole in itself, with a row more."""
    _write_shard(work / "other", [trainable_row("text", "train", key) for key in range(6)])
    shutil.copyfile(work / "other" / SHARD, work / "shards" / SHARD)
    return SHARD


def _write_shard(folder: Path, rows: list[dict[str, Any]]) -> Any:
    (folder / SHARD).unlink(missing_ok=True)
    (entry,) = write_shards([make_batch(rows)], folder, split="train", task="text", image_size=64)
    return entry


def _rebuild(work: Path, change: dict[str, Any]) -> None:
    """The shard built again, its first row changed, with a manifest that is true to it."""
    folder = work / "shards"
    rows = [trainable_row("text", "train", key) for key in range(5)]
    entry = _write_shard(folder, [{**rows[0], **change}, *rows[1:]])
    manifest = load_manifest(folder)
    entries = tuple(entry if entry.path == old.path else old for old in manifest.shards)
    write_manifest(folder, replace(manifest, shards=entries))


@pytest.mark.parametrize("edit", [_edit_shard, _edit_manifest, _edit_tokenizer, _replace_shard])
def test_what_was_edited_is_named_and_refused(work: Path, edit: Callable[[Path], str]) -> None:
    named = edit(work)
    code, output = _train(work)
    assert code == 2
    assert output.count("\n") == 1
    assert named in output
    assert "shards seal" in output
    assert not (work / "run").exists()


def test_shards_built_again_while_a_run_is_stopped_are_another_runs(work: Path) -> None:
    assert _train(work)[0] == 0
    _rebuild(work, {"prompt": "another"})
    code, output = _train(work, "--resume", "--steps", "3")
    assert code == 2
    assert "shards_sha256 was " in output
    code, output = _train(work, "--resume", "--steps", "3", "--resume-with", "shards_sha256")
    assert code == 0, output
    assert [record["step"] for record in records(work / "run") if record["kind"] == "step"] == [1, 2, 3]
    (noted,) = (record for record in records(work / "run") if record["kind"] == "changed")
    assert (noted["step"], noted["field"]) == (2, "shards_sha256")
    state = json.loads((work / "run" / "checkpoints" / "step-000003" / "state.json").read_text())
    assert [change["field"] for change in state["changes"]] == ["shards_sha256"]
    config = (work / "run" / "config.yaml").read_text()
    assert f"# from step 2 on: shards_sha256 was '{noted['old']}'" in config


def test_a_row_without_supervised_tokens_is_an_error_before_the_first_step(work: Path) -> None:
    """Whole by its hashes: the row itself is what cannot be learned from."""
    _rebuild(work, {"supervised": []})
    code, output = _train(work)
    assert code == 2
    assert "pubmedqa/train-0: has no supervised tokens" in output
    assert not (work / "run").exists()
