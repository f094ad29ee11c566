"""What the ledger says of a run: every step's samples, the ratio exact in every window."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from trainer_shards import make_feed, make_trainable

from janus.common.errors import UserError
from trainer.run.ledger import Ledger
from trainer.stream.feed import Feed
from trainer.stream.plan import Plan

TRAIN = {"vqa": 17, "text": 5, "t2i": 13, "edit": 7}
COUNTS = {"vqa": 5, "text": 1, "t2i": 4, "edit": 2}
STEPS, PER_FILE = 90, 40


@pytest.fixture(scope="module", autouse=True)
def _short_files() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.run.ledger.STEPS_PER_FILE", PER_FILE)
        yield


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    shards = make_trainable(tmp_path_factory.mktemp("data") / "shards", TRAIN)
    return make_feed(shards, steps=STEPS, micro_batch=2, ratio=COUNTS)


def _write(feed: Feed, out: Path, first: int, last: int, save_every: int) -> Path:
    ledger = Ledger(out, first - 1)
    for step in range(first, last + 1):
        ledger.add(step, feed.step(step))
        if step % save_every == 0 or step == last:
            ledger.save()
    return out


@pytest.fixture(scope="module")
def ledger(feed: Feed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(feed, tmp_path_factory.mktemp("run"), 1, STEPS, 7) / "ledger"


@pytest.fixture(scope="module")
def rows(ledger: Path) -> pl.DataFrame:
    return pl.scan_ipc(ledger / "*.arrow").collect()


def test_the_files_are_few_and_one_query_reads_them_all(ledger: Path, rows: pl.DataFrame) -> None:
    names = sorted(path.name for path in ledger.iterdir())
    assert names == [f"steps-{first:08d}.arrow" for first in (1, 41, 81)]
    assert rows.columns == ["step", "task", "sample_id", "epoch", "micro_batch"]
    assert len(rows) == STEPS * sum(COUNTS.values())


def test_it_names_the_samples_of_a_step_by_micro_batch(feed: Feed, rows: pl.DataFrame) -> None:
    data = feed.step(50)
    made = rows.filter(pl.col("step") == 50).with_columns(pl.col("task", "sample_id").cast(pl.String))
    calls = made.group_by("micro_batch", "task", maintain_order=True).len()
    expected = [(n, task, batch.samples) for n, (task, batch) in enumerate(data.batches)]
    assert calls.rows() == expected
    ids = [feed.train["vqa"].read(int(place)).sample_id for place in feed.plan.draw("vqa", 50).indices]
    assert made.filter(pl.col("task") == "vqa")["sample_id"].to_list() == ids


def test_the_ratio_is_exact_in_every_window_of_ten_steps(rows: pl.DataFrame) -> None:
    for first in range(1, STEPS - 8):
        window = rows.filter(pl.col("step").is_between(first, first + 9))["task"].cast(pl.String)
        assert dict(window.value_counts().iter_rows()) == {task: 10 * n for task, n in COUNTS.items()}


@pytest.mark.parametrize("stopped", [1, 39, 40, 41, 62, 80])
def test_resumed_it_has_the_same_bytes(feed: Feed, ledger: Path, tmp_path: Path, stopped: int) -> None:
    """Killed some steps after the checkpoint of step `stopped`, which the ledger has written already."""
    _write(feed, tmp_path, 1, min(stopped + 5, STEPS), 5)
    (tmp_path / "ledger" / ".tmp-steps-00000001.arrow.part").write_bytes(b"half")
    _write(feed, tmp_path, stopped + 1, STEPS, 9)
    for path in ledger.iterdir():
        assert (tmp_path / "ledger" / path.name).read_bytes() == path.read_bytes()


def test_a_file_that_cannot_be_resumed_is_named(feed: Feed, tmp_path: Path) -> None:
    path = _write(feed, tmp_path, 1, 20, 5) / "ledger" / "steps-00000001.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"steps-00000001.arrow: cannot be read .* put it back, or move"):
        Ledger(tmp_path, 10)


@pytest.mark.parametrize("rows", [17, 100_000])
def test_the_place_in_the_data_is_the_step_and_found_at_once(rows: int) -> None:
    weights = np.random.default_rng(0).uniform(0.5, 2, rows)
    plan = Plan(3, dict.fromkeys(COUNTS, weights), COUNTS, COUNTS)
    began = time.process_time()  # of this process alone: others may be busy
    draws = {task: plan.draw(task, 1_000_000) for task in COUNTS}
    assert time.process_time() - began < 1
    for task, count in COUNTS.items():
        places = (1_000_000 - 1) * count + np.arange(count)
        assert sorted(draws[task].epochs.tolist()) == (places // rows).tolist()
