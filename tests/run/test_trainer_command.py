"""`trainer train` as a user runs it, on a very small model: all tasks, both modes, resumed, refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import TEXT, finish, left_behind, refused, start, train_well
from safetensors.numpy import load_file
from trainer_shards import make_model, make_trainable

from janus.checkpoint.folder import open_model
from janus.model.janus import PARTS, part_of
from trainer.config import load_recipe, resolve

STEPS = 4
GIVEN = ("--model", "model", "--shards", "shards", "--learning-rate", "1e-2")


def _records(work: Path, out: str, kind: str = "step") -> list[dict]:
    lines = (work / out / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def _weights(work: Path, out: str, step: int = STEPS) -> dict[str, np.ndarray]:
    return load_file(work / out / f"checkpoints/step-{step:06d}/model.safetensors")


def _changed_parts(work: Path, out: str, step: int) -> set[str]:
    old, new = load_file(work / "model" / "model.safetensors"), _weights(work, out, step)
    assert old.keys() == new.keys()
    return {part_of(name) for name in old if not np.array_equal(old[name], new[name])}


@pytest.fixture(scope="module")
def mixed(work: Path) -> str:
    """A mixed run in a process of its own, with a checkpoint half-way; its output."""
    code, out, err = finish(start(work, *GIVEN, "--steps", STEPS, "--save-every", 2, "--out", "mixed"))
    assert code == 0, err
    return out


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


def test_it_learns_all_but_the_image_tokenizer_and_the_checkpoint_is_a_model(work: Path, mixed: str) -> None:
    assert _changed_parts(work, "mixed", STEPS) == PARTS.keys() - {"vq"}
    before, after = (record["loss_per_task"] for record in _records(work, "mixed", "validation"))
    assert all(after[task] < before[task] for task in ("vqa", "text"))
    model = open_model(str(work / "mixed/checkpoints/step-000004"))
    assert model.checkpoint
    assert model.config == open_model(str(work / "model")).config


def test_neither_the_mode_nor_the_cut_into_micro_batches_changes_the_numbers(work: Path, mixed: str) -> None:
    given = [*GIVEN, "--mode", "pynative", "--micro-batch", 2, "--steps", 2, "--eval-samples", 0]
    output = train_well(work, *given, "--out", "pynative")
    assert re.search(r"vqa: 7 rows, 1.43 epochs; 0 for validation; 3 × 2 samples in \d+ tokens", output)
    _check_same_numbers(work, "pynative", "mixed")
    left, right = _weights(work, "pynative", 2), _weights(work, "mixed", 2)
    for name, array in left.items():
        # AdamW's first steps are as large as the rate however small the gradient, so rounding shows. A key's
        # bias moves all scores of a query alike: its gradient is nothing but rounding.
        limit = 2 * 1e-2 if name.endswith("k_proj.bias") else 1e-5
        assert np.abs(array - right[name]).mean() < limit, name


@pytest.mark.slow
def test_layers_computed_again_in_the_backward_change_nothing(work: Path, mixed: str) -> None:
    given = [*GIVEN, "--gradient-checkpointing", "--steps", 2, "--eval-samples", 0]
    train_well(work, *given, "--out", "again")
    _check_same_numbers(work, "again", "mixed")


def _check_same_numbers(work: Path, run: str, other: str) -> None:
    for left, right in zip(_records(work, run), _records(work, other)[:2], strict=True):
        assert left["loss_per_task"] == pytest.approx(right["loss_per_task"], abs=1e-5)
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)


def test_a_resumed_run_equals_one_that_was_not_stopped(work: Path, mixed: str) -> None:
    shutil.copytree(work / "mixed", work / "resumed")
    shutil.rmtree(work / "resumed/checkpoints/step-000004")
    output = train_well(work, "--out", "resumed", "--resume")
    assert "resume: step 2 of resumed/checkpoints/step-000002" in output
    assert left_behind(work / "resumed", STEPS) == left_behind(work / "mixed", STEPS)
    output = train_well(work, "--out", "resumed", "--resume")
    assert "nothing left to do: 4 steps are done" in output.splitlines()[-1]


def test_a_run_is_resumed_where_there_is_one_and_with_its_own_numbers(work: Path, mixed: str) -> None:
    output = refused(work, "--out", "mixed", "--resume", "--seed", 3, "--batch-size", 20)
    assert "batch_size was 10, now 20; seed was 0, now 3" in output
    assert "--out mixed" in refused(work, *GIVEN, "--out", "mixed")
    assert "nothing holds no run" in refused(work, *GIVEN, "--out", "nothing", "--resume")
    assert "Error: shardz: no such folder" in refused(work, *GIVEN, "--shards", "shardz", "--out", "none")
    assert not (work / "none").exists()


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
    given = ["--task", task, "--stage", stage, "--steps", 3, "--eval-samples", 0, "--out", out]
    output = train_well(work, *GIVEN, *given)
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


def test_without_out_every_run_has_a_folder_of_its_own(work: Path) -> None:
    given = [*TEXT, "--steps", 1, "--mode", "pynative"]
    for _ in range(2):
        train_well(work, *given)
    assert sorted(path.name for path in (work / "outputs").iterdir()) == ["text-001", "text-002"]
    assert "; the newest is outputs/text-002" in refused(work, *given, "--resume")


@pytest.mark.slow
def test_eight_samples_a_task_are_learnt_by_heart(tmp_path: Path) -> None:
    """The whole of it can learn: mixed, within a minute."""
    make_model(tmp_path / "model")
    make_trainable(tmp_path / "shards", {"vqa": 24, "text": 24, "t2i": 24}, 4)
    options = {
        "samples": "vqa=8,text=8,t2i=8",
        "batch-size": 24,
        "steps": 300,
        "learning-rate": 5e-3,
        "schedule": "cosine",
        "null-prompt-prob": 0,  # a nulled prompt says nothing of what to draw
        "eval-samples": 0,
        "out": "run",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    train_well(tmp_path, *GIVEN, *arguments)
    records = _records(tmp_path, "run")
    assert len(records) == 300
    for task in ("vqa", "text", "t2i"):
        losses = [record["loss_per_task"][task] for record in records]
        assert losses[0] > 3, task
        assert max(losses[-8:]) < 0.05, task  # each step has every sample in it
