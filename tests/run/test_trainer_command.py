"""`trainer train` as a user runs it, on a very small model: all tasks, both modes, resumed, refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from paths import ROOT
from safetensors.numpy import load_file
from trainer_shards import make_model, make_trainable

from janus.checkpoint.folder import open_model
from janus.model.janus import PARTS, part_of
from trainer.cli import main
from trainer.config import load_recipe, resolve

STEPS = 4


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    make_model(folder / "model")
    make_trainable(folder / "shards", {"vqa": 7, "text": 4, "t2i": 6})
    return folder


def _train(work: Path, out: str, *arguments: str) -> tuple[int, str]:
    given = ["--model", "model", "--shards", "shards", "--steps", str(STEPS), "--learning-rate", "1e-2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        result = CliRunner().invoke(main, ["train", *given, "--out", out, *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def _records(work: Path, out: str, kind: str = "step") -> list[dict]:
    lines = (work / out / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def _losses(work: Path, out: str) -> list[float]:
    return [record["loss"] for record in _records(work, out)]


def _weights(work: Path, out: str, step: int = STEPS) -> dict[str, np.ndarray]:
    return load_file(work / out / f"checkpoints/step-{step:06d}/model.safetensors")


def _changed_parts(work: Path, out: str, step: int) -> set[str]:
    old, new = load_file(work / "model" / "model.safetensors"), _weights(work, out, step)
    assert old.keys() == new.keys()
    return {part_of(name) for name in old if not np.array_equal(old[name], new[name])}


@pytest.fixture(scope="module")
def mixed(work: Path) -> str:
    """A mixed run in a process of its own, with a checkpoint half-way; its output."""
    command = [sys.executable, "-m", "trainer", "train", "--model", "model", "--shards", "shards"]
    command += ["--steps", str(STEPS), "--learning-rate", "1e-2", "--save-every", "2", "--out", "mixed"]
    run = subprocess.run(
        command,
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_mixed_run_says_what_it_does_and_leaves_everything(work: Path, mixed: str) -> None:
    assert "step: 10 samples = 5 vqa + 1 text + 4 t2i; 4 steps" in mixed
    assert re.search(
        r"vqa: 7 rows, 2.86 epochs; 2 for validation; 1 × 5 samples in \d+ tokens, \d+ states, a", mixed
    )
    assert "frozen: nothing" in mixed
    assert mixed.count("step ") == mixed.count(" · loss ") + 2  # the two validations name one as well
    steps = _records(work, "mixed")
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert all(record["loss_per_task"].keys() == {"vqa", "text", "t2i"} for record in steps)
    assert len({record["compilations"] for record in steps}) == 1
    assert all(0 < record["padding"] < 1 and record["tokens_per_second"] > 0 for record in steps)
    for record in steps[1:]:  # the first compiles, so it has no step time
        assert record["tokens_per_second"] == pytest.approx(
            record["slots_per_second"] * (1 - record["padding"])
        )
        assert record["step_seconds_median"] == pytest.approx(record["seconds"], rel=0.01)
        assert record["samples_per_second"] == pytest.approx(10 / record["seconds"])
        assert 0 <= record["data_wait_seconds"] <= record["seconds"]
        assert 1e8 < record["peak_memory"] < 1e11
        assert record["compile_seconds"] == steps[0]["compile_seconds"] > 0
    assert steps[0]["step_seconds_median"] is None
    closing = [line.partition(":")[0] for line in mixed.splitlines()[-7:]]
    assert closing == ["step", "data", "graphs", "memory", "run", "checkpoint", "report"]
    assert [record["step"] for record in _records(work, "mixed", "validation")] == [0, STEPS]
    config = resolve(load_recipe(work / "mixed" / "config.yaml"))
    assert config.counts == {"vqa": 5, "text": 1, "t2i": 4}
    assert (config.steps, config.learning_rate, config.device) == (STEPS, 1e-2, "CPU")
    assert (work / "mixed" / "train.log").read_text() == mixed
    assert not list((work / "mixed").rglob(".tmp-*"))


def test_it_learns_and_the_checkpoint_is_a_model(work: Path, mixed: str) -> None:
    before, after = (record["loss_per_task"] for record in _records(work, "mixed", "validation"))
    assert all(after[task] < before[task] for task in ("vqa", "text"))
    model = open_model(str(work / "mixed/checkpoints/step-000004"))
    assert model.has_weights
    assert model.config == open_model(str(work / "model")).config


def test_neither_the_mode_nor_the_cut_into_micro_batches_changes_the_numbers(work: Path, mixed: str) -> None:
    given = ["--mode", "pynative", "--micro-batch", "2", "--steps", "2", "--eval-samples", "0"]
    code, output = _train(work, "pynative", *given)
    assert code == 0
    assert re.search(r"vqa: 7 rows, 1.43 epochs; 0 for validation; 3 × 2 samples in \d+ tokens", output)
    one, other = (_records(work, out)[:2] for out in ("pynative", "mixed"))
    for left, right in zip(one, other, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["loss_per_task"] == pytest.approx(right["loss_per_task"], abs=1e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
    left, right = _weights(work, "pynative", 2), _weights(work, "mixed", 2)
    for name, array in left.items():
        # AdamW's first steps are as large as the rate however small the gradient, so rounding shows. A key's
        # bias moves all scores of a query alike: its gradient is nothing but rounding.
        limit = 2 * 1e-2 if name.endswith("k_proj.bias") else 1e-5
        assert np.abs(array - right[name]).mean() < limit, name


def test_layers_computed_again_in_the_backward_change_nothing(work: Path, mixed: str) -> None:
    given = ["--gradient-checkpointing", "--steps", "2", "--eval-samples", "0", "--learning-rate", "1e-2"]
    code, output = _train(work, "again", *given)
    assert code == 0, output
    for left, right in zip(_records(work, "again"), _records(work, "mixed")[:2], strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)


def test_a_resumed_run_equals_one_that_was_not_stopped(work: Path, mixed: str) -> None:
    shutil.copytree(work / "mixed", work / "resumed")
    shutil.rmtree(work / "resumed/checkpoints/step-000004")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        result = CliRunner().invoke(main, ["train", "--out", "resumed", "--resume"])
        again = CliRunner().invoke(main, ["train", "--out", "resumed", "--resume"])
    assert result.exit_code == 0, result.output
    assert again.exit_code == 0
    assert again.output.endswith("nothing left to do: 4 steps are done; give more --steps to go on\n")
    assert "resume: step 2 of resumed/checkpoints/step-000002" in result.output
    assert _losses(work, "resumed") == _losses(work, "mixed")
    for name in ("model.safetensors", "optimizer.safetensors"):
        files = (work / out / "checkpoints/step-000004" / name for out in ("mixed", "resumed"))
        assert len({path.read_bytes() for path in files}) == 1


def test_what_would_change_the_numbers_is_refused_on_resume(work: Path, mixed: str) -> None:
    code, output = _train(work, "mixed", "--resume", "--seed", "3", "--batch-size", "20")
    assert code == 2
    assert "batch_size was 10, now 20; seed was 0, now 3" in output
    code, output = _train(work, "mixed")
    assert code == 2
    assert "already holds a run; resume it (--resume) or choose another folder" in output
    code, output = _train(work, "nothing", "--resume")
    assert code == 2
    assert "nothing holds no run" in output


@pytest.mark.parametrize(
    ("task", "stage", "trained"),
    [
        ("vqa", 1, {"aligner"}),
        ("t2i", 1, {"gen_embed", "gen_aligner", "gen_head"}),
        ("text", 3, {"llama", "lm_head"}),
    ],
)
def test_a_task_trains_its_own_parts_of_the_stage_and_nothing_else(
    work: Path, task: str, stage: int, trained: set[str]
) -> None:
    out = f"{task}-{stage}"
    arguments = ["--task", task, "--stage", str(stage), "--steps", "3", "--eval-samples", "0"]
    code, output = _train(work, out, *arguments)
    assert code == 0
    line = next(line for line in output.splitlines() if line.startswith("trained: "))
    assert all(f"{part} " in line for part in trained)
    steps = _records(work, out)
    assert len(steps) == 3
    assert all(record["loss_per_task"].keys() == {task} for record in steps)
    assert len({record["compilations"] for record in steps}) == 1
    assert _changed_parts(work, out, 3) == trained
    # What is frozen has no moments: nothing of it is in the optimizer's file.
    kept = load_file(work / out / "checkpoints/step-000003/optimizer.safetensors")
    assert {part_of(name.split(".", 1)[1]) for name in kept if name != "step"} == trained


def test_a_mixed_run_of_stage_3_trains_all_but_the_image_tokenizer(work: Path, mixed: str) -> None:
    assert _changed_parts(work, "mixed", STEPS) == PARTS.keys() - {"vq"}


def test_without_out_every_run_has_a_folder_of_its_own(work: Path, tmp_path: Path) -> None:
    given = ["train", "--task", "text", "--model", str(work / "model"), "--shards", str(work / "shards")]
    given += ["--steps", "1", "--eval-samples", "0", "--mode", "pynative"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for _ in range(2):
            assert CliRunner().invoke(main, given).exit_code == 0
        refused = CliRunner().invoke(main, [*given, "--resume"])
    runs = sorted(path.name for path in (tmp_path / "outputs").iterdir())
    assert runs == ["text-001", "text-002"]
    assert refused.exit_code == 2
    assert "--resume needs --out, the folder of the run; the newest is" in refused.output


def test_shards_that_are_not_there_are_one_line(work: Path) -> None:
    code, output = _train(work, "none", "--shards", "shardz")
    assert code == 2
    assert output.startswith("Error: shardz: no such folder")
    assert output.count("\n") == 1
    assert not (work / "none").exists()
