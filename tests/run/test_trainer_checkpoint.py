"""Checkpoints are whole or passed over; what would change the numbers is named on resume."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from janus.common.errors import UserError
from trainer.config import resolve
from trainer.report.log import RunLog
from trainer.report.records import METRICS
from trainer.run.checkpoint import (
    SHAPES,
    RunState,
    fingerprint,
    kept_shapes,
    newest_checkpoint,
    resumed_state,
    save_checkpoint,
)
from trainer.stream.plan import PLAN_VERSION

OPTIMIZER = {"m.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array([3], np.int32)}


def _save(out: Path, step: int, keep: int = 3, source: Path | None = None) -> Path:
    def save_model(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights %d" % step)

    return save_checkpoint(
        out,
        step,
        save_model,
        {name: Tensor(array) for name, array in OPTIMIZER.items()},
        RunState(fingerprint(resolve({}), "s")),
        keep,
        source,
    )


def _newest(out: Path) -> tuple[int | None, list[str]]:
    warnings: list[str] = []
    checkpoint = newest_checkpoint(out, warnings.append)
    return (checkpoint.step if checkpoint else None), warnings


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    _save(tmp_path, 5)
    checkpoint = newest_checkpoint(tmp_path, pytest.fail)
    assert checkpoint is not None
    assert checkpoint.step == 5
    assert checkpoint.state == RunState(fingerprint(resolve({}), "s"))
    loaded = checkpoint.optimizer()
    assert loaded.keys() == OPTIMIZER.keys()
    for name, array in OPTIMIZER.items():
        np.testing.assert_array_equal(loaded[name].asnumpy(), array)
        assert loaded[name].asnumpy().dtype == array.dtype


def test_the_newest_are_kept_and_numbers_are_not_sorted_as_text(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 1_000_001):
        _save(tmp_path, step, keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-1000000", "step-1000001"]
    assert _newest(tmp_path) == (1_000_001, [])


def test_the_checkpoint_that_a_process_began_from_stays_as_long_as_it_runs(tmp_path: Path) -> None:
    """What is never trained is copied from it at every save."""
    source = _save(tmp_path, 1)
    for step in (2, 3, 4):
        _save(tmp_path, step, keep=2, source=source)
    assert [path.name[-1] for path in sorted((tmp_path / "checkpoints").iterdir())] == ["1", "3", "4"]


@pytest.mark.parametrize("damage", ["edit", "truncate", "remove", "no state", "half a state"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, damage: str) -> None:
    _save(tmp_path, 1)
    folder = _save(tmp_path, 2)
    weights, state = folder / "model.safetensors", folder / "state.json"
    if damage == "edit":
        weights.write_bytes(b"weightz 2")
    elif damage == "truncate":
        (folder / "optimizer.safetensors").write_bytes(b"")
    elif damage == "remove":
        weights.unlink()
    elif damage == "no state":
        state.unlink()
    else:
        state.write_text(state.read_text()[:40])
    step, warnings = _newest(tmp_path)
    assert step == 1
    assert len(warnings) == 1
    assert "step-000002 is passed over" in warnings[0]
    assert (tmp_path / "checkpoints" / "damaged-step-000002").is_dir()
    assert _save(tmp_path, 2) == folder  # written anew
    assert _newest(tmp_path) == (2, [])


def test_a_save_that_dies_leaves_the_previous_one(tmp_path: Path) -> None:
    _save(tmp_path, 1)

    def full_disk(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    with pytest.raises(UserError, match=r"step-000002: could not be written \(no space"):
        save_checkpoint(tmp_path, 2, full_disk, OPTIMIZER, RunState({}), 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert _newest(tmp_path) == (1, [])
    _save(tmp_path, 2)
    assert _newest(tmp_path) == (2, [])


def test_resume_names_each_field_that_would_change_the_numbers(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    checkpoint = newest_checkpoint(tmp_path, pytest.fail)
    config = resolve({})
    assert resumed_state(checkpoint, fingerprint(config, "s"), ()) == checkpoint.state
    free = replace(config, steps=7, out="x", save_every=1, log_every=9, keep=1)
    assert resumed_state(checkpoint, fingerprint(free, "s"), ()) == checkpoint.state
    for change, says in [
        ({"seed": 5}, "seed was 0, now 5"),
        ({"mode": "pynative"}, "mode was graph, now pynative"),
        ({"device": "Ascend"}, "device was auto, now Ascend"),
        ({"batch_size": 20}, "batch_size was 10, now 20"),
        ({"max_length": 64}, "max_length was 1024, now 64"),
        ({"ratio": {"vqa": 1}}, r"ratio was \{'vqa': 5, 'text': 1, 't2i': 4\}, now \{'vqa': 1\}"),
        ({"sources": ("a",)}, r"sources was \[\], now \['a'\]"),
    ]:
        with pytest.raises(UserError, match=says):
            resumed_state(checkpoint, fingerprint(replace(config, **change), "s"), ())
    with pytest.raises(UserError, match="seed was 0, now 1; shards_sha256 was s, now t"):
        resumed_state(checkpoint, fingerprint(replace(config, seed=1), "t"), ())


def test_a_change_that_is_accepted_is_noted_and_one_that_is_none_refused(tmp_path: Path) -> None:
    _save(tmp_path, 4)
    checkpoint = newest_checkpoint(tmp_path, pytest.fail)
    now = fingerprint(replace(resolve({}), seed=5, batch_size=20), "t")
    with pytest.raises(UserError, match="batch_size was 10, now 20; shards_sha256 was s, now t; resume"):
        resumed_state(checkpoint, now, ("seed",))
    state = resumed_state(checkpoint, now, ("seed", "batch_size", "shards_sha256"))
    assert state.fingerprint == now
    assert {"step": 4, "field": "seed", "old": 0, "new": 5} in state.changes
    assert len(state.changes) == 3
    with pytest.raises(
        UserError, match="--resume-with eps: does not differ from the run; what differs is ba"
    ):
        resumed_state(checkpoint, now, ("seed", "batch_size", "shards_sha256", "eps"))


def test_a_run_of_an_older_plan_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 1)
    checkpoint = newest_checkpoint(tmp_path, pytest.fail)
    monkeypatch.setattr("trainer.run.checkpoint.PLAN_VERSION", PLAN_VERSION + 1)
    with pytest.raises(UserError, match=f"plan_version was {PLAN_VERSION}, now {PLAN_VERSION + 1}"):
        resumed_state(checkpoint, fingerprint(resolve({}), "s"), ())


SMALL, LARGE = ({"text": {"rows": 2, "length": size}} for size in (48, 64))


def test_larger_batches_for_more_steps_are_refused_but_follow_from_other_changes(tmp_path: Path) -> None:
    config = resolve({})
    before = {**fingerprint(config, "s"), SHAPES: SMALL}
    save_checkpoint(tmp_path, 1, lambda folder: None, {}, RunState(before), 3)
    checkpoint = newest_checkpoint(tmp_path, pytest.fail)
    assert kept_shapes(checkpoint, fingerprint(config, "s"), ()) == SMALL
    assert kept_shapes(checkpoint, fingerprint(config, "s"), (SHAPES,)) == SMALL
    assert resumed_state(checkpoint, before, ()) == checkpoint.state
    grown = {**before, SHAPES: LARGE}
    with pytest.raises(UserError, match=r"shapes was .*48.*, now .*64.* \(more steps need larger batches"):
        resumed_state(checkpoint, grown, ())
    assert [change["field"] for change in resumed_state(checkpoint, grown, (SHAPES,)).changes] == [SHAPES]

    other = fingerprint(replace(config, seed=1), "s")
    assert kept_shapes(checkpoint, other, ("seed",)) == {}
    state = resumed_state(checkpoint, {**other, SHAPES: LARGE}, ("seed",))
    assert [change["field"] for change in state.changes] == ["seed", SHAPES]
    with pytest.raises(UserError, match="seed was 0, now 1; resume"):
        kept_shapes(checkpoint, other, (SHAPES,))


@pytest.mark.parametrize("edit", [{"step": 2}, {"skipped": [1]}, {"sha256": {}}, {"changes": [{"a": 1}]}])
def test_an_edited_state_is_not_taken_for_what_was_written(tmp_path: Path, edit: dict) -> None:
    _save(tmp_path, 1)
    path = _save(tmp_path, 3) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    step, (warning,) = _newest(tmp_path)
    assert step == 1
    assert "state.json is not what was written" in warning


def test_a_checkpoint_under_another_steps_name_is_passed_over(tmp_path: Path) -> None:
    shutil.copytree(_save(tmp_path, 1), tmp_path / "checkpoints" / "step-000007")
    assert _newest(tmp_path)[0] == 1


def test_one_who_only_reads_moves_nothing(tmp_path: Path) -> None:
    """`trainer eval`, beside a run that may be going on."""
    _save(tmp_path, 1)
    (_save(tmp_path, 2) / "model.safetensors").unlink()
    warnings: list[str] = []
    checkpoint = newest_checkpoint(tmp_path, warnings.append, set_aside=False)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert len(warnings) == 1
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000001",
        "step-000002",
    ]


def test_where_no_checkpoint_is_whole_nothing_is_begun_anew(tmp_path: Path) -> None:
    for step in (1, 2):
        (_save(tmp_path, step) / "model.safetensors").unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"no checkpoint is whole .*step-000002.*step-000001"):
            newest_checkpoint(tmp_path, pytest.fail)


def test_steps_may_grow_only_where_the_rate_does_not_depend_on_them() -> None:
    def prints(schedule: str, steps: int) -> dict:
        return fingerprint(replace(resolve({}), schedule=schedule, steps=steps), "s")

    assert prints("constant", 5) == prints("constant", 6)
    assert prints("cosine", 5) != prints("cosine", 6)


def test_metrics_of_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    lines = [json.dumps({"kind": "step", "step": step}) for step in (1, 2, 3, 4)]
    (tmp_path / METRICS).write_text("\n".join(lines) + '\n{"kind": "st')
    with RunLog(tmp_path, steps=9, start=2) as log:
        assert [record["step"] for record in log.records] == [1, 2]
    assert (tmp_path / METRICS).read_text().splitlines() == lines[:2]


def test_notes_of_a_start_are_made_again_and_a_run_from_the_start_keeps_nothing(tmp_path: Path) -> None:
    records = [("validation", 0), ("step", 1), ("changed", 1), ("step", 2), ("skipped", 2), ("changed", 2)]
    text = "".join(json.dumps({"kind": kind, "step": step}) + "\n" for kind, step in records)
    (tmp_path / METRICS).write_text(text)
    with RunLog(tmp_path, steps=9, start=2) as log:
        assert [(record["kind"], record["step"]) for record in log.records] == records[:-1]
    with RunLog(tmp_path, steps=9, start=0) as log:
        assert log.records == []
