"""`trainer train`, here or in a process that can be killed, and what a run leaves, to be compared."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from paths import ROOT
from trainer_shards import make_model, make_trainable

from trainer.cli import main

NUMBERS = {"kind", "step", "loss", "loss_per_task", "learning_rate", "grad_norm", "padding"}
NUMBERS |= {"count", "kept", "field", "old", "new"}  # of notes
"""What two runs with the same numbers have in common; the rest are times, memory and graphs."""

TEXT = ("--task", "text", "--model", "model", "--shards", "shards", "--eval-samples", 0)
"""The cheapest run on a folder of `make_work`: one task, no validation."""
WITH_EDIT = ("--ratio", "vqa=5,text=1,t2i=4,edit=2")
"""A mixed run of every task in a folder of `make_work`."""


def make_work(folder: Path) -> Path:
    """A folder with `model` and `shards`, where the commands run; returns it."""
    make_model(folder / "model")
    make_trainable(folder / "shards", {"vqa": 7, "text": 5, "t2i": 6, "edit": 5})
    return folder


def train(work: Path, *arguments: object) -> tuple[int, str]:
    """The command in this process, in the folder `work`: exit code and output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        result = CliRunner().invoke(main, ["train", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def train_well(work: Path, *arguments: object) -> str:
    """Its output; the command must succeed."""
    code, output = train(work, *arguments)
    assert code == 0, output
    return output


def refused(work: Path, *arguments: object) -> str:
    """The one line with which the command ends, its exit code 2."""
    code, output = train(work, *arguments)
    assert code == 2, output
    assert output.startswith("Error: ")
    assert output.count("\n") == 1
    return output


def start(work: Path, *arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own; stdout and stderr are pipes."""
    command = [sys.executable, "-m", "trainer", "train", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=work, env=env, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr from here on."""
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def finish_well(process: subprocess.Popen[str]) -> str:
    """Its output from here on; the command must succeed."""
    code, out, err = finish(process)
    assert code == 0, err
    return out


def steps_seen(process: subprocess.Popen[str]) -> Iterator[int]:
    """The steps of the run as it says them."""
    for line in process.stdout:
        if line.startswith("step ") and " · loss " in line:
            yield int(line.split()[1].partition("/")[0])


def records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: x for name, x in json.loads(line).items() if name in NUMBERS} for line in lines]


def left_behind(run: Path, step: int) -> dict[str, Any]:
    """All that must be bit-identical in two runs: weights, moments, state, ledger, series of losses."""
    folders = [run / "checkpoints" / f"step-{step:06d}", run / "ledger"]
    files = {path.relative_to(run).as_posix(): path.read_bytes() for f in folders for path in f.iterdir()}
    return {**files, "records": records(run)}
