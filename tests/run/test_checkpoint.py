"""Checkpoints are whole or passed over; of each step there is at most one, and the newest are kept."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindone.safetensors.mindspore import load_file
from mindspore import Tensor

from janus.common.errors import UserError
from trainer.config import resolve
from trainer.run.checkpoint import RunState, fingerprint, newest_checkpoint, remove_old, save_checkpoint

OPTIMIZER = {"m.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array([3], np.int32)}
STATE = RunState(fingerprint(resolve({}), "s"))


def _save(out: Path, step: int, keep: int = 3, source: Path | None = None) -> Path:
    def save_model(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights %d" % step)

    optimizer = {name: Tensor(array) for name, array in OPTIMIZER.items()}
    saved = save_checkpoint(out, step, save_model, optimizer, STATE)
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
    loaded = load_file(checkpoint.folder / "optimizer.safetensors")
    assert loaded.keys() == OPTIMIZER.keys()
    for name, array in OPTIMIZER.items():
        np.testing.assert_array_equal(loaded[name].asnumpy(), array)
        assert loaded[name].asnumpy().dtype == array.dtype


def test_the_newest_are_kept_and_numbers_are_not_sorted_as_text(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 1_000_001):
        _save(tmp_path, step, keep=2)
    assert _names(tmp_path) == ["step-1000000", "step-1000001"]
    assert _newest(tmp_path) == (1_000_001, [])


def test_the_checkpoint_that_a_process_resumed_from_stays_as_long_as_it_runs(tmp_path: Path) -> None:
    """What is never trained is copied from it at every save."""
    source = _save(tmp_path, 1)
    for step in (2, 3, 4):
        _save(tmp_path, step, keep=2, source=source)
    assert [name[-1] for name in _names(tmp_path)] == ["1", "3", "4"]


def _edit_state(**edit: Any) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**content, **edit}))

    return damage


def _copy_the_first(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-000001"), folder)


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
    "another step's checkpoint": _copy_the_first,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path: Path, damage: str) -> None:
    _save(tmp_path, 1)
    folder = _save(tmp_path, 2)
    DAMAGE[damage](folder)
    step, (warning,) = _newest(tmp_path)
    assert step == 1
    assert "step-000002" in warning
    assert _names(tmp_path) == ["damaged-step-000002", "step-000001"]
    assert _save(tmp_path, 2) == folder  # written anew
    assert _newest(tmp_path) == (2, [])


def test_a_reader_moves_nothing(tmp_path: Path) -> None:
    """`trainer eval`, while the run may be in progress."""
    _save(tmp_path, 1)
    (_save(tmp_path, 2) / "model.safetensors").unlink()
    step, warnings = _newest(tmp_path, rename=False)
    assert (step, len(warnings)) == (1, 1)
    assert _names(tmp_path) == ["step-000001", "step-000002"]


def test_where_no_checkpoint_is_whole_nothing_starts_over(tmp_path: Path) -> None:
    for step in (1, 2):
        (_save(tmp_path, step) / "model.safetensors").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"step-000002.*step-000001"):
            newest_checkpoint(tmp_path, pytest.fail)


def test_a_save_that_dies_leaves_the_previous_one(tmp_path: Path) -> None:
    _save(tmp_path, 1)

    def no_more(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("no more")

    with pytest.raises(UserError, match=r"step-000002: .*no more"):
        save_checkpoint(tmp_path, 2, no_more, OPTIMIZER, RunState({}))
    assert _names(tmp_path) == ["step-000001"]
    assert _newest(tmp_path) == (1, [])
    _save(tmp_path, 2)
    assert _newest(tmp_path) == (2, [])
