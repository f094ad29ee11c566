"""A resumed run equals one that was not stopped; what would change its numbers is named, or accepted."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from runs import TEXT, make_work, records, refused, train_well
from shard_factory import make_batch
from trainer_shards import make_feed, trainable_row

from janus.common.errors import UserError
from shards.manifest import load_manifest, write_manifest
from shards.write import write_shards
from trainer.config import TrainConfig, resolve
from trainer.report.log import RunLog
from trainer.report.records import METRICS
from trainer.run.checkpoint import SHAPES, RunCheckpoint, RunState, fingerprint
from trainer.stream.feed import Feed
from trainer.stream.plan import PLAN_VERSION

CONFIG = resolve({})
PYNATIVE = (*TEXT, "--mode", "pynative")


def _checkpoint(config: TrainConfig = CONFIG, step: int = 1, **more: Any) -> RunCheckpoint:
    return RunCheckpoint(Path("run"), step, RunState({**fingerprint(config, "s"), **more}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 5}, "seed was 0, now 5"),
        ({"mode": "pynative"}, "mode was graph, now pynative"),
        ({"device": "Ascend"}, "device was auto, now Ascend"),
        ({"deterministic": False}, "deterministic was True, now False"),
        ({"batch_size": 20}, "batch_size was 10, now 20"),
        ({"max_length": 64}, "max_length was 1024, now 64"),
        ({"loss_weight": {"t2i": 0.5}}, r"loss_weight was \{\}, now \{'t2i': 0.5\}"),
        ({"ratio": {"vqa": 1}}, r"ratio was \{'vqa': 5, 'text': 1, 't2i': 4\}, now \{'vqa': 1\}"),
        ({"sources": ("a",)}, r"sources was \[\], now \['a'\]"),
        ({"steps": 200}, "steps was 100, now 200"),  # a cosine's rate depends on them
    ],
)
def test_each_field_that_would_change_the_numbers_is_named(change: dict[str, Any], says: str) -> None:
    cosine = replace(CONFIG, schedule="cosine")
    with pytest.raises(UserError, match=says):
        _checkpoint(cosine).resumed_state(fingerprint(replace(cosine, **change), "s"), ())


def test_what_leaves_numbers_alone_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint()
    free = replace(CONFIG, steps=7, out="x", shards="y", save_every=1, log_every=9, keep=1, skip_nonfinite=3)
    assert checkpoint.resumed_state(fingerprint(free, "s"), ()) == checkpoint.state
    other_card = replace(CONFIG, device_id=3)
    assert checkpoint.resumed_state(fingerprint(other_card, "s"), ()) == checkpoint.state
    monkeypatch.setattr("trainer.run.checkpoint.PLAN_VERSION", PLAN_VERSION + 1)
    with pytest.raises(UserError, match=f"plan_version was {PLAN_VERSION}, now {PLAN_VERSION + 1}"):
        checkpoint.resumed_state(fingerprint(CONFIG, "s"), ())


def test_a_change_that_is_accepted_is_recorded_and_one_that_is_none_refused() -> None:
    checkpoint, now = _checkpoint(step=4), fingerprint(replace(CONFIG, seed=5, batch_size=20), "t")
    with pytest.raises(UserError, match="batch_size was 10, now 20; shards_sha256 was s, now t; resume"):
        checkpoint.resumed_state(now, ("seed",))
    state = checkpoint.resumed_state(now, ("seed", "batch_size", "shards_sha256"))
    assert state.fingerprint == now
    assert {"step": 4, "field": "seed", "old": 0, "new": 5} in state.changes
    assert len(state.changes) == 3
    with pytest.raises(UserError, match="--resume-with eps: "):
        checkpoint.resumed_state(now, ("seed", "batch_size", "shards_sha256", "eps"))


def test_larger_batches_follow_from_other_changes() -> None:
    small, large = ({"text": {"attention_rows": 2, "length": size}} for size in (48, 64))
    checkpoint, now = _checkpoint(**{SHAPES: small}), fingerprint(CONFIG, "s")
    for accepted in ((), (SHAPES,)):
        assert checkpoint.kept_shapes(now, accepted) == small
    assert checkpoint.resumed_state({**now, SHAPES: small}, ()) == checkpoint.state
    other = fingerprint(replace(CONFIG, seed=1), "s")
    assert checkpoint.kept_shapes(other, ("seed",)) == {}
    state = checkpoint.resumed_state({**other, SHAPES: large}, ("seed",))
    assert [change["field"] for change in state.changes] == ["seed", SHAPES]
    with pytest.raises(UserError, match="seed was 0, now 1; resume"):
        checkpoint.kept_shapes(other, (SHAPES,))


def _feed(work: Path, steps: int, saved: dict | None = None) -> tuple[dict, Feed]:
    options = {"task": "text", "batch_size": 2, "eval_samples": 0, "steps": steps}
    feed = make_feed(work / "shards", saved, **options)
    return {task: shape.sizes for task, shape in feed.shapes.items()}, feed


def test_batches_keep_the_sizes_they_began_with_where_those_hold(work: Path) -> None:
    (one, _), (two, feed) = _feed(work, 1), _feed(work, 2)
    assert one != two  # the second step has a longer sample
    for steps, saved in ((9, two), (1, two), (2, one)):  # more steps, fewer steps; and nothing is ever cut
        assert _feed(work, steps, saved)[0] == two
    pairs = zip(_feed(work, 1, two)[1].step(1).batches, feed.step(1).batches, strict=True)
    for (_, kept), (_, natural) in pairs:
        assert [a.tolist() for a in kept.inputs] == [a.tolist() for a in natural.inputs]


def _check_accepted(work: Path, run: str, step: int, field: str, last: int) -> dict[str, Any]:
    """One change, of that field after that step, in the metrics and still in the last checkpoint."""
    (noted,) = (record for record in records(work / run) if record["kind"] == "changed")
    assert (noted["step"], noted["field"]) == (step, field)
    state = json.loads((work / run / "checkpoints" / f"step-{last:06d}" / "state.json").read_text())
    assert [change["field"] for change in state["changes"]] == [field]
    return noted


def test_steps_that_need_larger_batches_are_refused_or_accepted_knowingly(work: Path) -> None:
    train_well(work, *PYNATIVE, "--batch-size", 2, "--steps", 1, "--out", "growing")
    before = records(work / "growing")
    resume = ["--out", "growing", "--resume"]
    output = refused(work, *resume, "--steps", 3)
    sizes = "'attention_rows': 2, 'length': 48, 'tokens': 96, 'states': 16, 'understood': 0, 'drawn': 0"
    assert f"shapes was {{'text': {{{sizes}}}}}, now {{" in output
    assert records(work / "growing") == before
    train_well(work, *resume, "--steps", 3, "--resume-with", "shapes")
    train_well(work, *resume, "--steps", 5)  # from here on the batches are large enough
    _check_accepted(work, "growing", 1, "shapes", 5)


SHARD = "train/text-00000.arrow"


def _edit_shard(work: Path) -> str:
    """Other words in a message and the plain column of it: a file of the same size, readable as before."""
    path = work / "shards" / SHARD
    content = path.read_bytes()
    prompt = trainable_row("text", "train", 2)["prompt"].encode()
    assert content.count(prompt) == 2
    path.write_bytes(content.replace(prompt, prompt.upper()))
    return f"{SHARD}: row 2 (pubmedqa/train-2)"


def _edit_manifest(work: Path) -> str:
    path = work / "shards" / "manifest.json"
    path.write_text(path.read_text().replace('"name": "test"', '"name": "tost"'))
    return "manifest.json"


def _rebuild(work: Path, change: dict[str, Any]) -> str:
    """The shard built again, its first row changed, with a manifest that is true to it; the row's id."""
    folder = work / "shards"
    first, *others = (trainable_row("text", "train", key) for key in range(5))
    (folder / SHARD).unlink()
    batch = make_batch([{**first, **change}, *others])
    (entry,) = write_shards([batch], folder, split="train", task="text")
    manifest = load_manifest(folder)
    entries = tuple(entry if entry.path == old.path else old for old in manifest.shards)
    write_manifest(folder, replace(manifest, shards=entries))
    return first["sample_id"]


@pytest.mark.parametrize("edit", [_edit_shard, _edit_manifest, partial(_rebuild, change={"supervised": []})])
def test_edited_and_unsupervised_rows_are_named(tmp_path: Path, edit: Callable[[Path], str]) -> None:
    """The last are whole by their hashes: the row itself is what cannot be learned from."""
    named = edit(own := make_work(tmp_path))
    assert named in refused(own, *PYNATIVE, "--steps", 2, "--out", "run")
    assert not (own / "run").exists()


def test_shards_built_again_while_a_run_is_stopped_are_another_runs(tmp_path: Path) -> None:
    own = make_work(tmp_path)
    train_well(own, *PYNATIVE, "--steps", 2, "--out", "run")
    _rebuild(own, {"prompt": "another"})
    resume = ["--out", "run", "--resume", "--steps", 3]
    assert "shards_sha256 was " in refused(own, *resume)
    train_well(own, *resume, "--resume-with", "shards_sha256")
    assert [record["step"] for record in records(own / "run") if record["kind"] == "step"] == [1, 2, 3]
    noted = _check_accepted(own, "run", 2, "shards_sha256", 3)
    config = (own / "run" / "config.yaml").read_text()
    assert f"# from step 2 on: shards_sha256 was '{noted['old']}'" in config


def test_metrics_of_repeated_steps_are_dropped(tmp_path: Path) -> None:
    """And so is the start's own note; a run from the start keeps nothing."""
    kept = [("validation", 0), ("step", 1), ("changed", 1), ("step", 2), ("skipped", 2)]
    lines = [json.dumps({"kind": kind, "step": step}) for kind, step in (*kept, ("changed", 2), ("step", 3))]
    (tmp_path / METRICS).write_text("\n".join(lines) + '\n{"kind": "st')
    with RunLog(tmp_path, steps=9, start=2) as log:
        assert [(record["kind"], record["step"]) for record in log.records] == kept
    assert (tmp_path / METRICS).read_text().splitlines() == lines[: len(kept)]
    with RunLog(tmp_path, steps=9, start=0) as log:
        assert log.records == []
