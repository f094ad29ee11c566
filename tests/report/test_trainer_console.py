"""What a run shows and leaves beside its numbers: live progress, TensorBoard events, its report."""

import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from runs import refused, train_well
from trainer_shards import make_model, make_trainable

from trainer.report.meters import peak_memory, step_time

STEPS = 3
OPTIONS = ("--model", "model", "--shards", "shards", "--task", "text", "--mode", "pynative")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    make_model(folder / "model")
    make_trainable(folder / "shards", {"text": 4})
    return folder


@pytest.fixture(scope="module")
def screen(work: Path) -> str:
    """What a terminal of 100 columns gets from a run in `terminal`, with event files."""
    command = [sys.executable, "-m", "trainer", "train", *OPTIONS, "--steps", str(STEPS)]
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(
        [*command, "--out", "terminal", "--tensorboard"],
        cwd=work,
        env=environment,
        stdout=slave,
        stderr=slave,
        stdin=slave,
    )
    os.close(slave)
    shown = b""
    try:
        while block := os.read(master, 1 << 16):
            shown += block
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(master)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def test_a_terminal_gets_live_progress(work: Path, screen: str) -> None:
    assert "\x1b[" in screen
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen)
    assert re.search(rf"step {STEPS}/{STEPS} ━+ 0:00:00 left", plain)
    assert "tokens/s" in plain
    assert f"step {STEPS}/{STEPS} · loss" not in plain  # that line is for pipes, and for train.log
    assert f"step {STEPS}/{STEPS} · loss" in (work / "terminal" / "train.log").read_text()
    assert screen.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_a_finished_run_has_its_report(work: Path, screen: str) -> None:
    assert "report: terminal/report/report.html" in screen
    assert "is not finished" not in (work / "terminal/report/report.html").read_text()
    assert (work / "terminal/report/report-loss-text.png").is_file()


def events(folder: Path) -> dict[tuple[str, int], float]:
    """(name, step) → value of every scalar in the event files, read as TensorBoard's format says."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.glob("events.out.tfevents.*"):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


def test_event_files_hold_every_number(work: Path, screen: str) -> None:
    found = events(work / "terminal")
    for line in (work / "terminal" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kind, step = record["kind"], record["step"]
        assert found[f"{kind}/loss_per_task/text", step] == pytest.approx(record["loss_per_task"]["text"])
        assert found[f"{kind}/seconds", step] == pytest.approx(record["seconds"])
    steps = sorted(step for name, step in found if name == "step/learning_rate")
    assert steps == list(range(1, STEPS + 1))


def test_a_resumed_run_goes_on_with_events_and_survives_its_report(work: Path, screen: str) -> None:
    """A file in the place of the report's folder keeps it from being drawn: a line, and the run is whole."""
    shutil.copytree(work / "terminal", work / "blocked", ignore=shutil.ignore_patterns("report"))
    (work / "blocked" / "report").touch()
    resumed = ("--out", "blocked", "--resume", "--steps", STEPS + 1, "--tensorboard")
    output = train_well(work, *OPTIONS, *resumed)
    names = {name for name, step in events(work / "blocked") if step == STEPS + 1}
    assert {"step/loss", "validation/loss_per_task/text"} <= names
    last = output.splitlines()[-1]
    assert last.startswith("report: not written (blocked/report/report-")
    assert last.endswith("`trainer report blocked` tries again")
    assert (work / "blocked/checkpoints/step-000004/state.json").is_file()
    assert "\x1b" not in output  # plain lines where nobody can draw
    assert "step 4/4 · loss" in output


def test_without_the_writer_library_it_is_one_line(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    line = refused(work, *OPTIONS, "--steps", 1, "--out", "none", "--tensorboard")
    assert line.startswith("Error: --tensorboard: tensorboardX is not installed; pip install")
    assert not (work / "none").exists()


def test_step_times() -> None:
    times = step_time([0.1 * n for n in range(1, 102)])
    assert times["step_seconds_median"] == pytest.approx(5.1)
    assert times["step_seconds_p95"] == pytest.approx(9.6)
    assert step_time([]) == {"step_seconds_median": None, "step_seconds_p95": None}


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    before = peak_memory()["peak_memory"]
    block = np.ones(200 * 2**20, np.uint8)
    after = peak_memory()["peak_memory"]
    assert before <= after
    assert after > block.nbytes
