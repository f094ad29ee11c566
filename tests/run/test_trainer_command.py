"""`trainer train` as a user runs it, on a very small model: all tasks, both modes, resumed, refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rounding import rounding_bound
from runs import TEXT, WITH_EDIT, finish_well, left_behind, refused, start, train_well
from safetensors.numpy import load_file
from trainer_shards import make_model, make_trainable

from janus.checkpoint.folder import open_model
from janus.model.janus import PARTS, part_of
from trainer.config import load_recipe, resolve

STEPS = 4
GIVEN = ("--model", "model", "--shards", "shards", "--learning-rate", "1e-2", "--eps", "1e-2")
"""With eps = rate a weight moves by no more than its gradient, which clipping keeps below 1."""
TASKS = ("vqa", "text", "t2i", "edit")
TOKENS = 800  # of a step, at most


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
    return finish_well(start(work, *GIVEN, *WITH_EDIT, "--steps", STEPS, "--save-every", 2, "--out", "mixed"))


def test_a_mixed_run_says_what_it_does_and_leaves_everything(work: Path, mixed: str) -> None:
    assert "step: 12 samples = 5 vqa + 1 text + 4 t2i + 2 edit; 4 steps" in mixed
    plan = r"vqa: 7 rows, 2.86 epochs; 2 for validation; 1 × 5 samples in \d+ tokens, \d+ states, a"
    assert re.search(plan, mixed)
    assert "frozen: nothing" in mixed
    assert mixed.count("step ") == mixed.count(" · loss ") + 2  # the two validations name one as well
    first, *others = steps = _records(work, "mixed")
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert all(record["loss_per_task"].keys() == {*TASKS} for record in steps)
    # One graph for each signature, another for its validation; norm and update.
    assert {record["compilations"] for record in steps} == {2 * len(TASKS) + 2}
    assert all(0 < record["padding"] < 1 and record["tokens_per_second"] > 0 for record in steps)
    assert first["step_seconds_median"] is None  # it compiles
    for record in others:
        seconds, slots = record["seconds"], record["slots_per_second"]
        assert record["tokens_per_second"] == pytest.approx(slots * (1 - record["padding"]))
        assert record["step_seconds_median"] == pytest.approx(seconds, rel=0.01)
        assert record["samples_per_second"] == pytest.approx(12 / seconds)
        assert 0 <= record["data_wait_seconds"] <= seconds
        assert 1e8 < record["peak_memory"] < 1e11
        assert record["compile_seconds"] == first["compile_seconds"] > 0
    closing = [line.partition(":")[0] for line in mixed.splitlines()[-7:]]
    assert closing == ["step", "data", "graphs", "memory", "run", "checkpoint", "report"]
    assert [record["step"] for record in _records(work, "mixed", "validation")] == [0, STEPS]
    config = resolve(load_recipe(work / "mixed" / "config.yaml"))
    assert config.counts == {"vqa": 5, "text": 1, "t2i": 4, "edit": 2}
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


OTHERWISE = [("pynative", ["--mode", "pynative", "--micro-batch", 2])]
OTHERWISE += [pytest.param("checkpointing", ["--gradient-checkpointing"], marks=pytest.mark.slow)]


def _numbers(work: Path, out: str) -> list[dict[str, float]]:
    steps = _records(work, out)[:2]
    return [{**step["loss_per_task"], "all": step["loss"], "norm": step["grad_norm"]} for step in steps]


@pytest.mark.parametrize(("out", "options"), OTHERWISE)
def test_steps_computed_otherwise_are_the_same(work: Path, mixed: str, out: str, options: list) -> None:
    output = train_well(work, *GIVEN, *WITH_EDIT, *options, "--steps", 2, "--eval-samples", 0, "--out", out)
    calls = "3 × 2" if "--micro-batch" in options else "1 × 5"
    assert re.search(rf"vqa: 7 rows, 1.43 epochs; 0 for validation; {calls} samples in \d+ tokens", output)
    # Sums over a step's tokens are made in other parts; those of the second step with other weights, too.
    for step, numbers in enumerate(zip(_numbers(work, out), _numbers(work, "mixed"), strict=True), 1):
        for name, number in numbers[0].items():
            assert abs(number - numbers[1][name]) <= rounding_bound(number, TOKENS, step), name
    left, right = _weights(work, out, 2), _weights(work, "mixed", 2)
    for name, array in left.items():
        assert np.abs(array - right[name]).max() <= rounding_bound(1.0, TOKENS, 2), name


def test_a_resumed_run_equals_one_that_was_not_stopped(work: Path, mixed: str) -> None:
    shutil.copytree(work / "mixed", work / "resumed")
    shutil.rmtree(work / "resumed/checkpoints/step-000004")
    output = train_well(work, "--out", "resumed", "--resume")
    assert "resume: step 2 of resumed/checkpoints/step-000002" in output
    assert left_behind(work / "resumed", STEPS) == left_behind(work / "mixed", STEPS)
    output = train_well(work, "--out", "resumed", "--resume")
    assert "nothing left to do: 4 steps are done" in output.splitlines()[-1]
    output = refused(work, "--out", "mixed", "--resume", "--seed", 3, "--batch-size", 24)
    assert "batch_size was 12, now 24; seed was 0, now 3" in output
    assert "--out mixed" in refused(work, *GIVEN, "--out", "mixed")
    assert "nothing holds no run" in refused(work, *GIVEN, "--out", "nothing", "--resume")
    assert "Error: shardz: no such folder" in refused(work, *GIVEN, "--shards", "shardz", "--out", "none")
    assert not (work / "none").exists()


@pytest.mark.parametrize(
    ("task", "stage", "trained"),
    [
        ("vqa", 1, {"aligner"}),
        ("t2i", 1, {"gen_embed", "gen_aligner", "gen_head"}),
        ("edit", 1, {"aligner", "gen_embed", "gen_aligner", "gen_head"}),
        ("text", 3, {"llama", "lm_head"}),
    ],
)
def test_a_task_trains_its_parts_of_the_stage(work: Path, task: str, stage: int, trained: set[str]) -> None:
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
    options = ["--samples", "vqa=8,text=8,t2i=8", "--batch-size", 24, "--steps", 300, "--eps", 1e-8]
    options += ["--learning-rate", 5e-3, "--schedule", "cosine", "--eval-samples", 0, "--out", "run"]
    options += ["--null-prompt-prob", 0]  # a nulled prompt says nothing of what to draw
    train_well(tmp_path, *GIVEN, *options)
    records = _records(tmp_path, "run")
    assert len(records) == 300
    for task in ("vqa", "text", "t2i"):
        losses = [record["loss_per_task"][task] for record in records]
        assert losses[0] > 3, task
        assert max(losses[-8:]) < 0.05, task  # each step has every sample in it
