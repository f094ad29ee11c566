"""SIGTERM and Ctrl-C: saved at the next step, gone on with bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT
from runs import finish, left_behind, make_work, start, steps_seen

STEPS = 60


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_and_by_ctrl_c_ends_as_one_that_was_not(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    given = ["--task", "text", "--model", "model", "--shards", "shards", "--steps", STEPS]
    given += ["--eval-samples", 0, "--save-every", 0]
    code, _, err = finish(start(work, *given, "--out", "whole"))
    assert code == 0, err
    arguments, saved = [*given, "--out", "stopped"], 0
    for number, wanted in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        process = start(work, *arguments)
        seen = steps_seen(process)
        before = next(seen)
        process.send_signal(number)
        code, out, err = finish(process)
        assert code == wanted, err
        assert err.strip().endswith(f"{number.name}: saving after this step (Ctrl-C again ends at once)")
        steps = [int(path.name[5:]) for path in (work / "stopped/checkpoints").iterdir()]
        assert saved < before <= max(steps) < STEPS
        saved = max(steps)
        assert f"stopped by {number.name}, saved stopped/checkpoints/step-{saved:06d}: go on with" in out
        arguments = ["--out", "stopped", "--resume"]
    code, _, err = finish(start(work, *arguments))
    assert code == 0, err
    assert left_behind(work / "stopped", STEPS) == left_behind(work / "whole", STEPS)


def _until_compiling(process: subprocess.Popen[str], run: Path) -> None:
    for line in process.stdout:
        if line.startswith("frozen: "):  # the last line before the first graph
            break
    time.sleep(0.3)


def _until_evaluating(process: subprocess.Popen[str], run: Path) -> None:
    next(step for step in steps_seen(process) if step % EVERY == 0)  # the validation comes behind this line


def _until_saving(process: subprocess.Popen[str], run: Path) -> None:
    for line in process.stdout:
        if line.startswith("validation after step"):  # and the save behind this one
            break
    until = time.monotonic() + 5
    while not any(run.glob("checkpoints/.tmp-step-*")) and time.monotonic() < until:
        time.sleep(0.0005)


EVERY = 6
MOMENTS = [
    (_until_compiling, signal.SIGINT, 130),
    (_until_compiling, signal.SIGTERM, 0),
    (_until_evaluating, signal.SIGTERM, 0),
    (_until_evaluating, signal.SIGINT, 130),
    (_until_saving, signal.SIGINT, 130),
    (_until_saving, signal.SIGTERM, 0),
]


@pytest.mark.slow
def test_a_run_is_stopped_while_it_compiles_evaluates_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, six times; graphs are not kept, so that there is something to compile."""
    monkeypatch.setenv("JANUS_CACHE", "")
    work = make_work(tmp_path)
    given = ["--task", "text", "--model", "model", "--shards", "shards", "--steps", STEPS]
    given += ["--eval-samples", 2, "--eval-every", EVERY, "--save-every", EVERY]
    code, _, err = finish(start(work, *given, "--out", "whole"))
    assert code == 0, err
    arguments, saved = [*given, "--out", "stopped"], 0
    for until, number, wanted in MOMENTS:
        process = start(work, *arguments)
        until(process, work / "stopped")
        process.send_signal(number)
        code, out, err = finish(process)
        assert code == wanted, err
        assert err.endswith(f"{number.name}: saving after this step (Ctrl-C again ends at once)\n")
        steps = [int(path.name[5:]) for path in (work / "stopped/checkpoints").glob("step-*")]
        assert saved < max(steps) < STEPS, until
        saved = max(steps)
        assert f"stopped by {number.name}, saved stopped/checkpoints/step-{saved:06d}: go on with" in out
        arguments = ["--out", "stopped", "--resume"]
    code, _, err = finish(start(work, *arguments))
    assert code == 0, err
    assert left_behind(work / "stopped", STEPS) == left_behind(work / "whole", STEPS)


def test_no_thread_starts_before_signals_are_blocked() -> None:
    """Numpy's threads, for one, would take Ctrl-C, and MindSpore's handler make it a SIGTERM."""
    code = "import os, trainer.cli; print(len(os.listdir('/proc/self/task')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


BUSY = """
import hashlib, sys
from trainer.run.signals import StopSignals
with StopSignals() as stop:
    if sys.argv[1] == "stepping":
        stop.save_first()
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a call that no handler interrupts", b"", 2**31 - 1)
"""


def _busy(how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUSY, how]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
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
