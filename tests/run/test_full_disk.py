"""A disk that is full: one line, the checkpoint before it whole, and the run goes on once there is room."""

import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from runs import TEXT, finish, left_behind, start, train, train_well

from janus.common.errors import UserError
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
def test_a_full_disk_is_one_line_and_the_run_resumes_when_there_is_room(work: Path, disk: Path) -> None:
    given = [*TEXT, "--steps", STEPS, "--save-every", 3, "--keep", 9]
    train_well(work, *given, "--out", "never-full")
    whole = work / "never-full"
    checkpoint = sum(path.stat().st_size for path in (whole / "checkpoints/step-000003").iterdir())
    _resize(disk, checkpoint * 5 // 2)
    out = disk / "run"
    code, _, err = finish(start(work, *given, "--out", out))
    assert code == 2, err
    assert err.startswith(f"Error: {out}/checkpoints/step-000009: the disk is full")
    assert f"{out}/checkpoints/step-000006 is whole" in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000003", "step-000006"]
    _resize(disk, checkpoint * 9)
    code, _, err = finish(start(work, "--out", out, "--resume"))
    assert code == 0, err
    assert left_behind(out, STEPS) == left_behind(whole, STEPS)


@pytest.mark.parametrize(
    ("name", "make", "remedy"),
    [
        ("ledger", Path.touch, "--resume"),
        ("metrics.jsonl", Path.mkdir, "--resume"),
        (".tmp-config.yaml.part", Path.mkdir, "start the run again"),  # nothing to resume without config.yaml
    ],
)
def test_what_is_in_the_way_of_a_run_is_one_line(
    work: Path, name: str, make: Callable[[Path], None], remedy: str
) -> None:
    out = work / f"blocked by {name}"
    out.mkdir()
    make(out / name)
    code, output = train(work, *TEXT, "--steps", 1, "--mode", "pynative", "--out", out.name)
    assert code == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("Error")]
    assert name in line.partition("cannot be read or written (")[2]
    assert line.endswith(f"; fix that, then {remedy}")


def test_a_file_that_may_not_grow_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    """A limit on a file's size fails within the file, as a quota does."""

    def save(step: int) -> None:
        moments = {"m": Tensor(np.ones(100_000, np.float32))}
        save_checkpoint(tmp_path, step, lambda folder: None, moments, RunState({}))

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
