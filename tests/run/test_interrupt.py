"""Processes that are killed, stopped or two at once: it ends as if nothing had happened."""

import random
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
from commands import refusal
from paths import ROOT
from raw_data import build_command, run_well, write_pubmedqa
from runs import TEXT, WITH_EDIT, finish, finish_well, left_behind, refused, start, steps_seen, train_well

from janus.common.errors import UserError
from janus.common.files import exclusive_lock
from pipelines.cli import main

KILLED_STEPS, SAVE_EVERY = 24, 4
TASKS = ("text", "vqa", "t2i", "mixed")
POINTS = ("step", "save", "start", "save", "step")


@pytest.fixture(scope="module")
def killed(work: Path) -> dict[str, Future]:
    """Per task: where each kill struck. Two tasks at a time, each with a run that is not killed."""
    with ThreadPoolExecutor(2) as pool:
        return {task: pool.submit(_kill_and_resume, work, task) for task in TASKS}


def _kill_and_resume(work: Path, task: str) -> list[str]:
    given = ["--task", task, "--model", "model", "--shards", "shards", "--learning-rate", "1e-3"]
    given += ["--steps", KILLED_STEPS, "--save-every", SAVE_EVERY, "--keep", 2]
    given += WITH_EDIT if task == "mixed" else ()
    given += ["--eval-every", 6, "--eval-samples", 2 if task == "text" else 0]
    finish_well(start(work, *given, "--out", f"{task}-whole"))
    drawn = random.Random(f"points of {task}")
    steps = sorted(drawn.sample(range(2, KILLED_STEPS - 1), len(POINTS)))
    struck, arguments = [], [*given, "--out", f"{task}-killed"]
    for point, step in zip(POINTS, steps, strict=True):
        struck.append(_kill(work, arguments, point, step, drawn))
        arguments = ["--out", f"{task}-killed", "--resume"]
    finish_well(start(work, *arguments))
    return struck


def _kill(work: Path, arguments: list, point: str, step: int, drawn: random.Random) -> str:
    process, last = start(work, *arguments), 0
    if point == "start":
        time.sleep(drawn.uniform(0.5, 2.5))
    else:
        step = -(-step // SAVE_EVERY) * SAVE_EVERY if point == "save" else step
        last = next(seen for seen in steps_seen(process) if seen >= step)
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
def test_a_run_killed_ends_as_one_that_was_not(work: Path, killed: dict[str, Future], task: str) -> None:
    struck = killed[task].result()
    assert len(struck) == len(POINTS)
    whole, resumed = (left_behind(work / f"{task}-{how}", KILLED_STEPS) for how in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == [], struck
    assert [r["step"] for r in whole["records"] if r["kind"] == "step"] == list(range(1, KILLED_STEPS + 1))
    assert [path.name for path in (work / f"{task}-killed").rglob(".tmp-*")] == []


STEPS, EVERY = 60, 6


def _until(moment: str, process: subprocess.Popen[str], run: Path) -> None:
    if moment in ("stepping", "evaluating"):  # the validation follows the line of an EVERY-th step
        next(step for step in steps_seen(process) if moment == "stepping" or step % EVERY == 0)
        return
    last_line = {"compiling": "frozen: ", "saving": "validation after step"}[moment]
    next(line for line in process.stdout if line.startswith(last_line))
    if moment == "compiling":
        time.sleep(0.3)
    else:
        _wait_for(run, ".tmp-step-*")


MOMENTS = ("stepping", "compiling", "evaluating", "saving")
CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}


@pytest.mark.slow
def test_a_run_is_stopped_at_any_moment(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run, stopped again and again; graphs are not kept, so that there is something to compile."""
    monkeypatch.setenv("JANUS_CACHE", "")
    given = [*TEXT, "--steps", STEPS, "--eval-samples", 2, "--eval-every", EVERY, "--save-every", EVERY]
    train_well(work, *given, "--out", "not-stopped")
    arguments, saved = [*given, "--out", "stopped"], 0
    for moment, (number, wanted) in product(MOMENTS, CODES.items()):
        process = start(work, *arguments)
        _until(moment, process, work / "stopped")
        process.send_signal(number)
        code, out, err = finish(process)
        assert code == wanted, err
        assert err.strip().splitlines()[-1].startswith(f"{number.name}: saving after this step")
        steps = [int(path.name[5:]) for path in (work / "stopped/checkpoints").glob("step-*")]
        assert saved < max(steps) < STEPS, moment
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


@pytest.mark.parametrize(("number", "code"), CODES.items())
def test_before_there_is_anything_to_save_the_first_signal_ends(number: signal.Signals, code: int) -> None:
    process = _busy("starting")
    process.send_signal(number)
    assert process.wait(10) == code


HOLD = """
import sys, time
from pathlib import Path
from janus.common.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    time.sleep(600)
"""


def _check_taken(path: Path) -> None:
    with pytest.raises(UserError, match="taken"), exclusive_lock(path, "taken"):
        pass


def test_a_lock_goes_with_its_process_whatever_ends_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    _check_taken(path)
    assert path.exists()  # the one who was refused did not remove it
    holder.kill()
    holder.communicate()
    with exclusive_lock(path, "first"):
        _check_taken(path)
    assert list(tmp_path.iterdir()) == []
    with exclusive_lock(path, "first"):
        path.unlink()  # who finds another file under the name than the one locked takes the new one
        with exclusive_lock(path, "second"):
            _check_taken(path)


@pytest.fixture
def build(tmp_path: Path, sample_data: Path) -> list[str]:
    rows = [{"pubid": i, "question": f"Is {i} even?", "long_answer": f"{i % 2 == 0}."} for i in range(40)]
    write_pubmedqa(tmp_path / "data", rows)
    return [*map(str, build_command(tmp_path / "data", tmp_path, sample_data / "tokenizer"))]


@pytest.mark.parametrize(
    ("lock", "says"),
    [
        ("work/.lock", "work: another build is at work in this folder; wait for its end"),
        (".lock-shards", "shards: another build is writing this folder; wait for its end"),
    ],
)
def test_a_second_build_is_told_so(tmp_path: Path, build: list[str], lock: str, says: str) -> None:
    (tmp_path / "work").mkdir()
    with exclusive_lock(tmp_path / lock, "the first build"):
        assert says in refusal(main, *build)
        assert not (tmp_path / "shards").exists()
        if lock == "work/.lock":  # a single stage asks as well
            assert says in refusal(main, "ingest", *build[1:5])
            assert not (tmp_path / "work" / "ingest").exists()
    run_well(*build)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "work", "shards"}
    assert not (tmp_path / "work" / ".lock").exists()


@pytest.mark.slow
def test_a_build_in_progress_is_not_disturbed(tmp_path: Path, build: list[str]) -> None:
    command, pipe = [sys.executable, "-m", "pipelines", *build], subprocess.PIPE
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=pipe, text=True)
    while not (tmp_path / "work" / ".lock").exists() and first.poll() is None:
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)  # a build of few rows ends before the second has started
    assert (tmp_path / "work" / ".lock").exists()
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2, second.stdout
    assert second.stderr.startswith("Error: ")
    assert second.stderr.count("\n") == 1
    _, errors = first.communicate()
    assert first.returncode == 0, errors
    assert (tmp_path / "shards" / "manifest.json").is_file()


def test_two_that_begin_one_new_run_do_not_share_it(work: Path) -> None:
    """The folder has no run yet, but one has just claimed it."""
    (work / "new").mkdir()
    with exclusive_lock(work / "new" / ".lock", "the first"):
        assert "another trainer is at work" in refused(work, *TEXT, "--out", "new", "--steps", 1)
    assert list((work / "new").iterdir()) == []


@pytest.mark.slow
def test_a_second_trainer_leaves_a_run_in_progress_alone(work: Path) -> None:
    given = [*TEXT, "--steps", 40, "--save-every", 10]
    train_well(work, *given, "--out", "alone")
    process = start(work, *given, "--out", "disturbed")
    next(steps_seen(process))
    assert "another trainer is at work" in refused(work, "--out", "disturbed", "--resume")
    finish_well(process)
    assert left_behind(work / "disturbed", 40) == left_behind(work / "alone", 40)
    assert not (work / "disturbed" / ".lock").exists()
