"""Runs that are killed (`kill -9`) again and again end as one that never was.

For each task, and for all in one, a run is killed at five points drawn from a seed, gone on with after
each: while it starts, within steps, and while it saves. Twenty points in all.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from runs import finish, left_behind, make_work, start, steps_seen

STEPS, SAVE_EVERY = 24, 4
TASKS = ("text", "vqa", "t2i", "mixed")
POINTS = ("step", "save", "start", "save", "step")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[list[str]]]:
    """Per task: where each kill struck. Two tasks at a time, each beside its run that is not killed."""
    work = make_work(tmp_path_factory.mktemp("work"))
    with ThreadPoolExecutor(2) as pool:
        found = {task: pool.submit(_kill_and_go_on, work, task) for task in TASKS}
    return {"work": work, **found}


def _kill_and_go_on(work: Path, task: str) -> list[str]:
    given = ["--task", task, "--model", "model", "--shards", "shards", "--learning-rate", "1e-3"]
    given += ["--steps", STEPS, "--save-every", SAVE_EVERY, "--keep", 2]
    given += ["--eval-every", 6, "--eval-samples", 2 if task == "text" else 0]
    code, _, err = finish(start(work, *given, "--out", f"{task}-whole"))
    assert code == 0, err
    drawn = random.Random(f"points of {task}")
    steps = sorted(drawn.sample(range(2, STEPS - 1), len(POINTS)))
    struck, arguments = [], [*given, "--out", f"{task}-killed"]
    for point, step in zip(POINTS, steps, strict=True):
        struck.append(_kill(work, arguments, point, step, drawn))
        arguments = ["--out", f"{task}-killed", "--resume"]
    code, _, err = finish(start(work, *arguments))
    assert code == 0, err
    return struck


def _kill(work: Path, arguments: list, point: str, step: int, drawn: random.Random) -> str:
    """Start, kill at the point, and say where that was."""
    process = start(work, *arguments)
    last = 0
    if point == "start":
        time.sleep(drawn.uniform(0.5, 2.5))
    else:
        to_save = -(-step // SAVE_EVERY) * SAVE_EVERY
        for last in steps_seen(process):
            if last >= (to_save if point == "save" else step):
                break
        if point == "save":
            _wait_for_save(work / arguments[arguments.index("--out") + 1] / "checkpoints", last)
        time.sleep(drawn.uniform(0, 0.03))
    process.kill()
    code, _, err = finish(process)
    assert code == -9, err
    return f"{point} {last}"


def _wait_for_save(checkpoints: Path, step: int) -> None:
    """Until the save has begun; on a fast machine it may be over by the time one looks."""
    begun = checkpoints / f".tmp-step-{step:06d}", checkpoints / f"step-{step:06d}"
    until = time.monotonic() + 5
    while not any(folder.exists() for folder in begun) and time.monotonic() < until:
        time.sleep(0.0005)


@pytest.mark.parametrize("task", TASKS)
def test_a_run_killed_at_five_points_ends_as_one_that_was_not(runs: dict, task: str) -> None:
    struck = runs[task].result()
    assert len(struck) == len(POINTS)
    whole, killed = (left_behind(runs["work"] / f"{task}-{how}", STEPS) for how in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == [], struck
    assert [r["step"] for r in whole["records"] if r["kind"] == "step"] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("task", TASKS)
def test_nothing_half_written_is_left(runs: dict, task: str) -> None:
    runs[task].result()
    assert [path.name for path in (runs["work"] / f"{task}-killed").rglob(".tmp-*")] == []


def test_the_ledger_of_the_killed_run_holds_every_step_and_the_ratio(runs: dict) -> None:
    runs["mixed"].result()
    ledger = pl.scan_ipc(runs["work"] / "mixed-killed" / "ledger" / "*.arrow").collect()
    counts = ledger.group_by("step", "task").len().sort("step")
    assert counts["step"].unique().to_list() == list(range(1, STEPS + 1))
    for task, count in {"vqa": 5, "text": 1, "t2i": 4}.items():
        assert counts.filter(pl.col("task") == task)["len"].to_list() == [count] * STEPS
