"""Runs that are killed (`kill -9`) or stopped (SIGTERM, Ctrl-C) again and again end as one that never was.

For each task, and for all in one, a run is killed at five points drawn from a seed, while it starts, steps
and saves; it is resumed after each.
"""

import random
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from paths import ROOT
from runs import TEXT, finish, left_behind, start, steps_seen, train_well

KILLED_STEPS, SAVE_EVERY = 24, 4
TASKS = ("text", "vqa", "t2i", "mixed")
POINTS = ("step", "save", "start", "save", "step")


@pytest.fixture(scope="module")
def killed(work: Path) -> dict[str, Future[list[str]]]:
    """Per task: where each kill struck. Two tasks at a time, each with a run that is not killed."""
    with ThreadPoolExecutor(2) as pool:
        return {task: pool.submit(_kill_and_resume, work, task) for task in TASKS}


def _kill_and_resume(work: Path, task: str) -> list[str]:
    given = ["--task", task, "--model", "model", "--shards", "shards", "--learning-rate", "1e-3"]
    given += ["--steps", KILLED_STEPS, "--save-every", SAVE_EVERY, "--keep", 2]
    given += ["--eval-every", 6, "--eval-samples", 2 if task == "text" else 0]
    code, _, err = finish(start(work, *given, "--out", f"{task}-whole"))
    assert code == 0, err
    drawn = random.Random(f"points of {task}")
    steps = sorted(drawn.sample(range(2, KILLED_STEPS - 1), len(POINTS)))
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
        if point == "save":  # on a fast machine it may be over by the time one looks
            run = work / arguments[arguments.index("--out") + 1]
            _wait_for(run, f".tmp-step-{last:06d}", f"step-{last:06d}")
        time.sleep(drawn.uniform(0, 0.03))
    process.kill()
    code, _, err = finish(process)
    assert code == -9, err
    return f"{point} {last}"


def _wait_for(run: Path, *checkpoints: str) -> None:
    """Until a folder of one of these names is there, but 5 s at most."""
    until = time.monotonic() + 5
    while time.monotonic() < until and not any(any(run.glob(f"checkpoints/{x}")) for x in checkpoints):
        time.sleep(0.0005)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_run_killed_at_five_points_ends_as_one_that_was_not(
    work: Path, killed: dict[str, Future[list[str]]], task: str
) -> None:
    struck = killed[task].result()
    assert len(struck) == len(POINTS)
    whole, resumed = (left_behind(work / f"{task}-{how}", KILLED_STEPS) for how in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == [], struck
    assert [r["step"] for r in whole["records"] if r["kind"] == "step"] == list(range(1, KILLED_STEPS + 1))
    assert [path.name for path in (work / f"{task}-killed").rglob(".tmp-*")] == []


STEPS, EVERY = 60, 6


def _until_line(process: subprocess.Popen[str], start: str) -> None:
    next(line for line in process.stdout if line.startswith(start))


def _until_compiling(process: subprocess.Popen[str], run: Path) -> None:
    _until_line(process, "frozen: ")  # the last line before the first graph
    time.sleep(0.3)


def _until_stepping(process: subprocess.Popen[str], run: Path) -> None:
    next(steps_seen(process))


def _until_evaluating(process: subprocess.Popen[str], run: Path) -> None:
    next(step for step in steps_seen(process) if step % EVERY == 0)  # the validation follows this line


def _until_saving(process: subprocess.Popen[str], run: Path) -> None:
    _until_line(process, "validation after step")  # the save follows this line
    _wait_for(run, ".tmp-step-*")


MOMENTS = [
    (_until_stepping, signal.SIGTERM, 0),
    (_until_stepping, signal.SIGINT, 130),
    (_until_compiling, signal.SIGINT, 130),
    (_until_compiling, signal.SIGTERM, 0),
    (_until_evaluating, signal.SIGTERM, 0),
    (_until_evaluating, signal.SIGINT, 130),
    (_until_saving, signal.SIGINT, 130),
    (_until_saving, signal.SIGTERM, 0),
]


@pytest.mark.slow
def test_a_run_is_stopped_while_it_steps_compiles_evaluates_and_saves(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, stopped again and again; graphs are not kept, so that there is something to compile."""
    monkeypatch.setenv("JANUS_CACHE", "")
    given = [*TEXT, "--steps", STEPS, "--eval-samples", 2, "--eval-every", EVERY, "--save-every", EVERY]
    train_well(work, *given, "--out", "not-stopped")
    arguments, saved = [*given, "--out", "stopped"], 0
    for until, number, wanted in MOMENTS:
        process = start(work, *arguments)
        until(process, work / "stopped")
        process.send_signal(number)
        code, out, err = finish(process)
        assert code == wanted, err
        assert err.strip().splitlines()[-1].startswith(f"{number.name}: saving after this step")
        steps = [int(path.name[5:]) for path in (work / "stopped/checkpoints").glob("step-*")]
        assert saved < max(steps) < STEPS, until
        saved = max(steps)
        assert f"stopped by {number.name}, saved stopped/checkpoints/step-{saved:06d}: " in out
        arguments = ["--out", "stopped", "--resume"]
    train_well(work, *arguments)
    assert left_behind(work / "stopped", STEPS) == left_behind(work / "not-stopped", STEPS)


def test_no_thread_starts_before_signals_are_blocked() -> None:
    """Numpy's threads, for one, would take Ctrl-C, and MindSpore's handler make it a SIGTERM."""
    code = "import os, trainer.cli; trainer.cli.resolve({}); print(len(os.listdir('/proc/self/task')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


BUSY = """
import hashlib, sys
from trainer.run.signals import StopSignals
with StopSignals() as stop:
    if sys.argv[1] == "stepping":
        stop.can_save = True
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a call that no handler interrupts", b"", 2**31 - 1)
"""


def _busy(how: str) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, "-c", BUSY, how], subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, bufsize=1)
    assert process.stdout.readline() == "busy\n"
    return process


def test_a_second_ctrl_c_ends_at_once_even_within_a_step() -> None:
    process = _busy("stepping")
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("SIGINT: saving after this step")
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stderr.read() == "SIGINT: ended at once; what was saved before is whole\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_before_there_is_anything_to_save_the_first_signal_ends(number: signal.Signals, code: int) -> None:
    process = _busy("starting")
    process.send_signal(number)
    assert process.wait(10) == code
