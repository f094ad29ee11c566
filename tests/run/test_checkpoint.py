"""Checkpoints are whole or passed over, the newest are kept, and a full disk leaves the one before it."""

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disks import remount, small_disk
from mindone.safetensors.mindspore import load_file
from mindspore import Tensor
from runs import TEXT, finish, finish_well, left_behind, start, train, train_well

from janus.common.errors import UserError
from trainer.config import resolve
from trainer.run.checkpoint import RunState, fingerprint, newest_checkpoint, remove_old, save_checkpoint

OPTIMIZER = {"m.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array([3], np.int32)}
STATE = RunState(fingerprint(resolve({}), "s"))


def _save(out: Path, step: int, keep: int = 3, source: Path | None = None) -> Path:
    def save_model(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights %d" % step)

    saved = save_checkpoint(out, step, save_model, {k: Tensor(v) for k, v in OPTIMIZER.items()}, STATE)
    remove_old(out, keep, source)
    return saved


def _newest(out: Path, rename: bool = True) -> tuple[int | None, list[str]]:
    warnings: list[str] = []
    checkpoint = newest_checkpoint(out, warnings.append, rename)
    return (checkpoint.step if checkpoint else None), warnings


def _names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    _save(tmp_path, 5)
    checkpoint = newest_checkpoint(tmp_path, pytest.fail)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.state) == (5, STATE)
    saved = load_file(checkpoint.folder / "optimizer.safetensors")
    loaded = {name: tensor.asnumpy() for name, tensor in saved.items()}
    np.testing.assert_equal(loaded, OPTIMIZER)
    assert all(loaded[name].dtype == array.dtype for name, array in OPTIMIZER.items())


def test_the_newest_are_kept_and_the_one_that_the_process_resumed_from(tmp_path: Path) -> None:
    """Numbers are not sorted as text. What is never trained is copied from the source at every save."""
    source = _save(tmp_path, 999_998)
    for step in (999_999, 1_000_000, 1_000_001):
        _save(tmp_path, step, keep=2, source=source)
    assert _names(tmp_path) == ["step-1000000", "step-1000001", "step-999998"]
    assert _newest(tmp_path) == (1_000_001, [])
    remove_old(tmp_path, 2, None)
    assert _names(tmp_path) == ["step-1000000", "step-1000001"]


def _edit_state(**edit: Any) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))

    return damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    "edited weights": lambda folder: (folder / "model.safetensors").write_bytes(b"weightz 2"),
    "truncated optimizer": lambda folder: (folder / "optimizer.safetensors").write_bytes(b""),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "half a state": lambda folder: os.truncate(folder / "state.json", 40),
    "another step": _edit_state(step=1),
    "steps skipped": _edit_state(skipped=[1]),
    "no checksums": _edit_state(sha256={}),
    "changes": _edit_state(changes=[{"a": 1}]),
    "another's files": lambda to: shutil.copytree(to.with_name("step-000001"), to, dirs_exist_ok=True),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path: Path, damage: str) -> None:
    _save(tmp_path, 1)
    folder = _save(tmp_path, 2)
    DAMAGE[damage](folder)
    # A reader moves nothing: the run may be in progress.
    for moves, left in ((False, "step-000002"), (True, "damaged-step-000002")):
        step, (warning,) = _newest(tmp_path, moves)
        assert step == 1
        assert "step-000002" in warning
        assert _names(tmp_path) == sorted(["step-000001", left])
    assert _save(tmp_path, 2) == folder  # written anew
    assert _newest(tmp_path) == (2, [])


def test_where_no_checkpoint_is_whole_nothing_starts_over(tmp_path: Path) -> None:
    for step in (1, 2):
        (_save(tmp_path, step) / "model.safetensors").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"step-000002.*step-000001"):
            newest_checkpoint(tmp_path, pytest.fail)


def test_a_save_that_dies_leaves_the_previous_one(tmp_path: Path) -> None:
    def no_more(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("no more")

    _save(tmp_path, 1)
    with pytest.raises(UserError, match=r"step-000002: .*no more"):
        save_checkpoint(tmp_path, 2, no_more, OPTIMIZER, STATE)
    assert _names(tmp_path) == ["step-000001"]
    _save(tmp_path, 2)
    assert _newest(tmp_path) == (2, [])


STEPS = 12


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64m") as disk:
        yield disk


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_resumes_when_there_is_room(work: Path, disk: Path) -> None:
    """Room for two checkpoints and a half."""
    given = [*TEXT, "--steps", STEPS, "--save-every", 3, "--keep", 9]
    whole, out = work / "never-full", disk / "run"
    train_well(work, *given, "--out", whole)
    checkpoint = sum(path.stat().st_size for path in (whole / "checkpoints/step-000003").iterdir())
    remount(disk, f"size={checkpoint * 5 // 2}")
    code, _, err = finish(start(work, *given, "--out", out))
    assert code == 2, err
    assert err.startswith(f"Error: {out}/checkpoints/step-000009: the disk is full")
    assert f"{out}/checkpoints/step-000006 is whole" in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000003", "step-000006"]
    remount(disk, f"size={checkpoint * 9}")
    finish_well(start(work, "--out", out, "--resume"))
    assert left_behind(out, STEPS) == left_behind(whole, STEPS)


IN_THE_WAY = [("ledger", Path.touch, "--resume"), ("metrics.jsonl", Path.mkdir, "--resume")]
IN_THE_WAY += [(".tmp-config.yaml.part", Path.mkdir, "start the run again")]  # without config.yaml, no resume


@pytest.mark.parametrize(("name", "make", "remedy"), IN_THE_WAY)
def test_what_is_in_the_way_of_a_run_is_one_line(work: Path, name: str, make: Callable, remedy: str) -> None:
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
    _save(tmp_path, 1)
    old, moments = resource.getrlimit(resource.RLIMIT_FSIZE), {"m": Tensor(np.ones(100_000, np.float32))}
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
    try:
        with pytest.raises(UserError, match=r"step-000002: the disk is full .*step-000001 is whole"):
            save_checkpoint(tmp_path, 2, lambda folder: None, moments, STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (_names(tmp_path), _newest(tmp_path)) == (["step-000001"], (1, []))
