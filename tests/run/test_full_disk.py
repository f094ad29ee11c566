"""A disk that is full: one line, the checkpoint before it whole, and the run goes on once there is room."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from mindspore import Tensor
from runs import finish, left_behind, make_work, start

from janus.common.errors import UserError
from trainer.cli import main
from trainer.run.checkpoint import RunState, newest_checkpoint, save_checkpoint

STEPS = 12


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for two checkpoints and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(tmp_path: Path, disk: Path) -> None:
    work = make_work(tmp_path / "work")
    given = ["--task", "text", "--model", "model", "--shards", "shards", "--steps", STEPS]
    given += ["--eval-samples", 0, "--save-every", 3, "--keep", 9]
    code, _, err = finish(start(work, *given, "--out", "whole"))
    assert code == 0, err
    checkpoint = sum(path.stat().st_size for path in (work / "whole/checkpoints/step-000003").iterdir())
    _resize(disk, checkpoint * 5 // 2)
    out = disk / "run"
    code, _, err = finish(start(work, *given, "--out", out))
    assert code == 2, err
    assert err.startswith(f"Error: {out}/checkpoints/step-000009: the disk is full ([Errno 28] No space left")
    assert err.endswith(f"{out}/checkpoints/step-000006 is whole, --resume it\n")
    assert err.count("\n") == 1
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000003", "step-000006"]
    _resize(disk, checkpoint * 9)
    code, _, err = finish(start(work, "--out", out, "--resume"))
    assert code == 0, err
    assert left_behind(out, STEPS) == left_behind(work / "whole", STEPS)


@pytest.mark.parametrize(("name", "make"), [("ledger", Path.touch), ("metrics.jsonl", Path.mkdir)])
def test_what_stands_in_the_way_of_a_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(make_work(tmp_path))
    Path("run").mkdir()
    make(Path("run") / name)
    given = [
        "--task",
        "text",
        "--model",
        "model",
        "--shards",
        "shards",
        "--steps",
        "1",
        "--eval-samples",
        "0",
    ]
    result = CliRunner().invoke(main, ["train", *given, "--mode", "pynative", "--out", "run"])
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert line.startswith("Error: run: a file cannot be read or written (")
    assert name in line


def test_a_file_that_may_not_grow_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    """A limit on a file's size fails within the file, as a quota does."""

    def save(step: int) -> None:
        moments = {"m": Tensor(np.ones(100_000, np.float32))}
        save_checkpoint(tmp_path, step, lambda folder: None, moments, RunState({}), 3)

    save(1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
    try:
        with pytest.raises(UserError, match=r"step-000002: the disk is full .*step-000001 is whole"):
            save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    checkpoint = newest_checkpoint(tmp_path, pytest.fail)
    assert checkpoint is not None
    assert checkpoint.step == 1
