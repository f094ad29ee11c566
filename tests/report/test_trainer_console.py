"""What a run shows and leaves beside its numbers: live progress, TensorBoard events, its report."""

from __future__ import annotations

import json
import os
import pty
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from paths import ROOT
from trainer_shards import make_model, make_trainable

from trainer.cli import main

STEPS = 3
GIVEN = ["--model", "model", "--shards", "shards", "--task", "text", "--mode", "pynative"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    make_model(folder / "model")
    make_trainable(folder / "shards", {"text": 4})
    return folder


@pytest.fixture(scope="module")
def screen(work: Path) -> str:
    """What a terminal of 100 columns gets from a run in `terminal`, with event files."""
    command = [sys.executable, "-m", "trainer", "train", *GIVEN, "--steps", str(STEPS), "--out", "terminal"]
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(
        [*command, "--tensorboard"], cwd=work, env=environment, stdout=slave, stderr=slave, stdin=slave
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


def _train(work: Path, *arguments: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        return CliRunner().invoke(main, ["train", *GIVEN, *arguments])


def _records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


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
    for record in _records(work / "terminal"):
        kind, step = record["kind"], record["step"]
        assert found[f"{kind}/loss_per_task/text", step] == pytest.approx(record["loss_per_task"]["text"])
        assert found[f"{kind}/seconds", step] == pytest.approx(record["seconds"])
    steps = sorted(step for name, step in found if name == "step/learning_rate")
    assert steps == list(range(1, STEPS + 1))


def test_event_files_go_on_with_the_run(work: Path, screen: str) -> None:
    result = _train(work, "--out", "terminal", "--resume", "--steps", str(STEPS + 1), "--tensorboard")
    assert result.exit_code == 0, result.output
    names = {name for name, step in events(work / "terminal") if step == STEPS + 1}
    assert {"step/loss", "validation/loss_per_task/text"} <= names


def test_a_report_that_cannot_be_drawn_is_a_line_and_the_run_is_whole(work: Path) -> None:
    (work / "blocked").mkdir()
    (work / "blocked" / "report").write_text("a file where the folder should be")
    result = _train(work, "--steps", "1", "--eval-samples", "0", "--out", "blocked")
    assert result.exit_code == 0, result.output
    last = result.output.splitlines()[-1]
    assert last.startswith("report: not written (blocked/report/report-")
    assert last.endswith("`trainer report blocked` tries again")
    assert (work / "blocked/checkpoints/step-000001/state.json").is_file()
    assert "\x1b" not in result.output  # plain lines where nobody can draw
    assert "step 1/1 · loss" in result.output


def test_without_the_writer_library_it_is_one_line(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    result = _train(work, "--steps", "1", "--out", "none", "--tensorboard")
    assert result.exit_code == 2
    assert result.output.startswith("Error: --tensorboard: tensorboardX is not installed; pip install")
    assert not (work / "none").exists()
