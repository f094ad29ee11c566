"""Rows a run uses, and what is refused before the first step."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rounding import rounding_bound
from trainer_shards import make_feed, make_model, make_trainable, word_tokenizer

from janus.checkpoint.folder import open_model
from janus.common.errors import UserError
from janus.prompts import SIGNATURES, unconditional
from janus.tokens import JanusTokenizer
from shards.read import ShardSet
from trainer.config import resolve
from trainer.run.open import check_model
from trainer.step import TrainStep
from trainer.stream.feed import BLOCKS_AHEAD, Feed, steps_ahead
from trainer.stream.plan import null_prompt
from trainer.stream.shapes import ROUND_TO, Batch, round_up

TRAIN = {"vqa": 7, "text": 6, "t2i": 6, "edit": 5, "interleaved": 4}
RATIO = {"vqa": 5, "text": 1, "t2i": 4, "edit": 2, "interleaved": 1}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trainable(tmp_path_factory.mktemp("data") / "shards", TRAIN)


def _used(labels_N: np.ndarray | None) -> list[int]:
    """The labels that count."""
    return [] if labels_N is None else labels_N[labels_N >= 0].tolist()


def _targets(batch: Batch) -> list[int]:
    """Those of text, then those of images."""
    return [*_used(batch.labels_N), *_used(batch.image_labels_N)]


def test_a_step_holds_the_exact_counts_in_equal_micro_batches(shards: Path) -> None:
    feed = make_feed(shards, micro_batch=3, ratio=RATIO)
    data = feed.step(3)
    made = [(task, batch.samples) for task, batch in data.batches]
    first = [("vqa", 3), ("vqa", 2), ("text", 1), ("t2i", 2), ("t2i", 2)]
    assert made == [*first, ("edit", 2), ("interleaved", 1)]
    assert data.samples == 13
    for task, batch in data.batches:
        shape = feed.shapes[task]
        assert batch.input_ids_P.shape == (shape.tokens,)
        assert batch.token_of_BS.shape == (shape.attention_rows, shape.length)
    assert [feed.shapes[task].samples for task in RATIO] == [3, 1, 2, 2, 1]
    assert feed.signatures == {task: SIGNATURES[task] for task in RATIO}
    assert data.supervised == sum(len(_targets(batch)) for _, batch in data.batches)
    assert data.tokens < data.slots


def test_micro_batching_changes_neither_samples_nor_targets(shards: Path) -> None:
    def content(micro_batch: int, step: int) -> dict[str, list]:
        seen: dict[str, list] = {task: [] for task in TRAIN}
        feed = make_feed(shards, micro_batch=micro_batch, null_prompt_prob=0.5, ratio=RATIO)
        for task, batch in feed.step(step).batches:
            seen[task] += [*batch.input_ids_P[: batch.tokens], *_targets(batch)]
        return {task: sorted(some) for task, some in seen.items()}

    for step in (1, 2, 3):
        assert content(1, step) == content(2, step) == content(3, step) == content(5, step)
    assert content(1, 1) != content(1, 2)


def test_every_call_of_a_run_fits_the_shape_that_was_chosen_for_it(shards: Path) -> None:
    """And no smaller one would do: the fullest call fills all but the rounding."""
    feed = make_feed(shards, micro_batch=2, steps=30, ratio=RATIO)
    batches = [pair for step in range(1, 31) for pair in feed.step(step).batches]
    batches += [(task, batch) for task in TRAIN for batch in feed.validation_batches(task)]
    for task, shape in feed.shapes.items():
        calls = [batch for other, batch in batches if other == task]
        fullest = max(int((batch.segment_ids_BS > 0).sum(1).max()) for batch in calls)
        assert shape.tokens - ROUND_TO <= max(batch.tokens for batch in calls) < shape.tokens
        assert shape.states == round_up(max(len(_used(batch.labels_N)) for batch in calls))
        assert shape.codes == max(len(_used(batch.image_labels_N)) for batch in calls)
        assert shape.understood == shape.samples * SIGNATURES[task].understood
        assert shape.length - ROUND_TO <= fullest < shape.length


def test_null_prompts_are_dealt_to_every_task_that_draws(shards: Path) -> None:
    """By sample and epoch; what a prompt keeps, tests of batches say."""
    feed, stored = make_feed(shards, micro_batch=1, null_prompt_prob=0.5, ratio=RATIO), ShardSet.open(shards)
    special = word_tokenizer().special
    nulled: dict[str, set[bool]] = {task: set() for task in RATIO}
    for step in range(1, 6):
        data = feed.step(step)
        uses = [(d.task, use) for d in data.drawn for use in zip(d.sample_ids, d.epochs, strict=True)]
        for (task, (sample_id, epoch)), (_, batch) in zip(uses, data.batches, strict=True):
            sample = stored.find(sample_id)
            null = SIGNATURES[task].drawn and null_prompt(0, sample_id, epoch, 0.5)
            nulled[task].add(null)
            expected = (
                unconditional(sample.input_ids, special, sample.supervised) if null else sample.input_ids
            )
            np.testing.assert_array_equal(batch.input_ids_P[: batch.tokens], expected)
    assert nulled == {task: {True, False} if SIGNATURES[task].drawn else {False} for task in RATIO}


def _training(shards: Path, work: Path, **given: Any) -> tuple[Feed, TrainStep, Callable[[], dict]]:
    feed, network = make_feed(shards, **given), open_model(str(work / "model")).build()
    step = TrainStep(network, feed.signatures, resolve({**given, "device": "CPU"}))
    return feed, step, lambda: {p.name: p.asnumpy().copy() for p in network.get_parameters()}


SLOW = (("t2i", "graph"), ("text", "pynative"), ("vqa", "pynative"), ("interleaved", "pynative"))
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]


@pytest.mark.parametrize(("task", "mode"), [("edit", "pynative"), *SLOW])
def test_micro_batches_make_the_same_step(shards: Path, work: Path, task: str, mode: str) -> None:
    results = []
    for micro_batch in (6, 1, 2):
        # With eps = rate a weight moves by no more than its gradient, which clipping keeps below 1.
        given = {"task": task, "batch_size": 6, "micro_batch": micro_batch, "eps": 1e-2, "mode": mode}
        feed, network, weights = _training(shards, work, **given)
        data, before = feed.step(1), weights()
        assert [batch.samples for _, batch in data.batches] == [micro_batch] * (6 // micro_batch)
        for _, batch in data.batches:
            network.accumulate(task, batch, 1.0 / data.supervised)
        numbers = network.measure()
        network.apply(1e-2)
        results.append((numbers, weights()))
    one, weights_one = results[0]
    assert max(np.abs(weights_one[name] - before[name]).max() for name in before) > 1e-3
    # A loss is a sum over predicting states, a gradient one over tokens, here in other parts.
    loss = rounding_bound(one.loss_sum[task], data.supervised)
    norm, moved = (rounding_bound(x, data.tokens) for x in (one.grad_norm, 1.0))
    for other, others in results[1:]:
        assert other.supervised == one.supervised
        assert other.loss_sum[task] == pytest.approx(one.loss_sum[task], rel=0, abs=loss)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=0, abs=norm)
        for name, array in weights_one.items():
            np.testing.assert_allclose(others[name], array, rtol=0, atol=moved, err_msg=name)


def test_a_step_that_is_discarded_leaves_no_trace(shards: Path, work: Path) -> None:
    given = {"task": "text", "batch_size": 2, "micro_batch": 2, "mode": "pynative"}
    feed, network, weights = _training(shards, work, **given)
    ((task, batch),), before, norms = feed.step(1).batches, weights(), []
    for scale in (1.0, np.nan, 1.0):
        network.accumulate(task, batch, scale)
        norms.append(network.measure().grad_norm)
        network.discard()
    assert np.isnan(norms[1])
    assert norms[2] == norms[0]
    np.testing.assert_equal(weights(), before)
    with pytest.raises(RuntimeError, match="before measure"):
        network.apply(1e-2)


@pytest.mark.parametrize(
    "given", [{"ratio": RATIO}, *({"task": task, "batch_size": 2} for task in ("t2i", "text"))]
)
def test_steps_made_ahead_are_those_made_alone_from_any_start(shards: Path, given: dict[str, Any]) -> None:
    feed, other = (make_feed(shards, null_prompt_prob=0.5, **given) for _ in range(2))
    assert feed.block_steps > 3 or "ratio" in given  # made together
    for step, data, waited in steps_ahead(feed, 4, 7):
        assert waited >= 0
        alone = other.step(step)
        assert data.drawn == alone.drawn
        for drawn in data.drawn:
            place = int(feed.plan.draw(drawn.task, step).indices[0])
            assert drawn.sample_ids[0] == feed.train[drawn.task].read(place).sample_id
        for (_, batch), (_, one) in zip(data.batches, alone.batches, strict=True):
            for name, array in vars(batch).items():
                np.testing.assert_array_equal(array, getattr(one, name))
    assert [step for step, _, _ in steps_ahead(feed, 5, 4)] == []


def test_an_error_in_the_thread_ahead_reaches_the_loop(tmp_path: Path) -> None:
    folder = make_trainable(tmp_path / "shards", {"text": 3})
    feed = make_feed(folder, task="text")
    (shard,) = (folder / "train").glob("*.arrow")
    with shard.open("r+b") as file:  # in place: the reader has the file mapped
        file.seek(shard.read_bytes().index(b"pubmedqa/train-0"))
        file.write(b"q")
    with pytest.raises(UserError, match=r"text-00000.arrow"):
        list(steps_ahead(feed, 1, (BLOCKS_AHEAD + 1) * feed.block_steps))


def test_fixed_samples_are_always_the_same_and_fewer_are_taken_as_there_are(shards: Path) -> None:
    draws = ((3, 1), (3, 2), (4, 1))
    drawn = [make_feed(shards, samples={"vqa": vqa, "t2i": 60}, seed=seed).train for vqa, seed in draws]
    one, other, more = drawn
    assert {task: len(rows) for task, rows in one.items()} == {"vqa": 3, "t2i": TRAIN["t2i"]}
    np.testing.assert_array_equal(one["vqa"].indices, other["vqa"].indices)
    assert set(one["vqa"].indices) < set(more["vqa"].indices)


def test_validation_takes_so_many_and_none_where_there_are_none(shards: Path, tmp_path: Path) -> None:
    feed = make_feed(shards, eval_samples=1, ratio=RATIO)
    taken = {task: sum(b.samples for b in feed.validation_batches(task)) for task in feed.validation}
    assert taken == dict.fromkeys(TRAIN, 1)
    assert make_feed(shards, eval_samples=0, ratio=RATIO).validation == {}
    bare = make_trainable(tmp_path / "bare", {"text": 2}, validation=0)
    assert make_feed(bare, task="text").validation == {}


def test_what_cannot_be_trained_on_is_refused_before_the_first_step(shards: Path, tmp_path: Path) -> None:
    assert len(make_feed(shards, task="vqa", sources=("medical-vqa",)).train["vqa"]) == TRAIN["vqa"]
    text_only = make_trainable(tmp_path / "text", {"text": 2})
    for folder, given, says in (
        (shards, {"sources": ("roco",)}, r"no train/vqa rows of roco; there are medical-vqa"),
        (shards, {"max_length": 60}, r"max_length: the longest vqa sample has \d+ tokens, more than 60"),
        (text_only, {}, r"no train/vqa rows; there are train/text, validation/text"),
    ):
        with pytest.raises(UserError, match=says):
            make_feed(folder, task="vqa", **given)


def test_shards_of_another_tokenizer_or_vq_encoder_are_refused(shards: Path, tmp_path: Path) -> None:
    path, tokenizer = make_model(tmp_path / "model"), JanusTokenizer(shards / "tokenizer")
    config, model = resolve({"model": str(path)}), open_model(str(path))

    def check(folder: Path, *tasks: str) -> None:
        check_model(config.model, tasks or RATIO, model, ShardSet.open(folder), tokenizer)

    check(shards)
    other = make_trainable(tmp_path / "other", {"t2i": 1}, vq_sha256="0" * 64)
    check(other, "text", "vqa")
    for task in ("t2i", "edit", "interleaved"):
        with pytest.raises(UserError, match=r"image tokens are not those of .*model's VQ encoder"):
            check(other, "text", task)
    content = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps(content))  # the same tokens, other bytes
    with pytest.raises(UserError, match=r"model/tokenizer.json: not the tokenizer of"):
        check(shards)


def test_a_feed_for_a_named_device_does_not_load_mindspore() -> None:
    """Its threads would halve what a reader without a network reaches."""
    code = "import sys; import trainer.stream.feed; from janus.model.kernels import takes_slots; "
    code += "print(takes_slots('CPU'), takes_slots('Ascend'), 'mindspore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False", "False"], done.stderr
