"""Rows a run uses, and what is refused before the first step."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from shard_factory import make_batch
from trainer_shards import CODES, SIDE, TOKENS, make_model, make_trainable, trainable_row

from janus.checkpoint.folder import open_model
from janus.common.errors import UserError
from janus.tokens import JanusTokenizer
from shards.check import open_verified
from shards.manifest import load_manifest, write_manifest
from shards.read import ShardSet
from shards.write import write_shards
from trainer.config import resolve
from trainer.run.open import check_model, open_run
from trainer.stream.feed import BLOCKS_AHEAD, Feed, steps_ahead
from trainer.stream.shapes import ROUND_TO, Batch, ImageShape

TRAIN = {"vqa": 7, "text": 6, "t2i": 6}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trainable(tmp_path_factory.mktemp("data") / "shards", TRAIN)


def _feed(shards: Path, **given: object) -> Feed:
    special = JanusTokenizer(shards / "tokenizer").special
    return Feed(ShardSet.open(shards), resolve(given), special, ImageShape(SIDE, TOKENS, CODES))


def test_a_step_holds_the_exact_counts_in_equal_micro_batches(shards: Path) -> None:
    feed = _feed(shards, micro_batch=3)
    data = feed.step(3)
    assert [task for task, _ in data.batches] == ["vqa", "vqa", "text", "t2i", "t2i"]
    assert [batch.samples for _, batch in data.batches] == [3, 2, 1, 2, 2]
    assert data.samples == 10
    for task, batch in data.batches:
        shape = feed.shapes[task]
        assert batch.input_ids_P.shape == (shape.tokens,)
        assert batch.token_of_BS.shape == (shape.attention_rows, shape.length)
    assert [feed.shapes[task].samples for task in ("vqa", "text", "t2i")] == [3, 1, 2]
    assert data.supervised == sum((batch.labels_N >= 0).sum() for _, batch in data.batches)
    assert data.tokens < data.slots


def _sample_of_call(batch: Batch) -> list[tuple[bytes, ...]]:
    """Each sample of a call as its ids and its (predicting position, label) pairs, wherever it stands."""
    samples = []
    for number in range(1, batch.samples + 1):
        tokens = batch.token_of_BS[batch.segment_ids_BS == number]
        own = np.isin(batch.state_rows_N, tokens) & (batch.labels_N >= 0)
        positions = batch.position_ids_P[batch.state_rows_N[own]]
        arrays = (batch.input_ids_P[tokens], positions, batch.labels_N[own])
        samples.append(tuple(array.tobytes() for array in arrays))
    return samples


def test_micro_batching_changes_neither_samples_nor_targets(shards: Path) -> None:
    def content(micro_batch: int, step: int) -> list[tuple]:
        data = _feed(shards, micro_batch=micro_batch, null_prompt_prob=0.5).step(step)
        return sorted((task, sample) for task, batch in data.batches for sample in _sample_of_call(batch))

    for step in (1, 2, 3):
        assert content(1, step) == content(2, step) == content(3, step) == content(5, step)
    assert content(1, 1) != content(1, 2)


def test_every_call_of_a_run_fits_the_shape_that_was_chosen_for_it(shards: Path) -> None:
    """And no smaller one would do: the fullest call fills all but the rounding."""
    feed = _feed(shards, micro_batch=2, steps=30)
    batches = [pair for step in range(1, 31) for pair in feed.step(step).batches]
    batches += [(task, batch) for task in TRAIN for batch in feed.validation_batches(task)]
    for task, shape in feed.shapes.items():
        calls = [batch for other, batch in batches if other == task]
        fullest = max(int((batch.segment_ids_BS > 0).sum(1).max()) for batch in calls)
        assert shape.tokens - ROUND_TO <= max(batch.tokens for batch in calls) < shape.tokens
        assert shape.states - ROUND_TO < max(batch.supervised for batch in calls) <= shape.states
        assert shape.length - ROUND_TO <= fullest < shape.length


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model")


@pytest.mark.parametrize(
    ("task", "mode"),
    [
        ("vqa", "pynative"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("t2i", "graph"), ("text", "pynative"))),
    ],
)
def test_one_call_of_6_six_of_1_and_three_of_2_make_the_same_step(
    shards: Path, model: Path, task: str, mode: str
) -> None:
    from trainer.step import TrainStep

    before = {p.name: p.asnumpy().copy() for p in open_model(str(model)).build().get_parameters()}
    results = []
    for micro_batch in (6, 1, 2):
        # AdamW's first step is as large as the rate however small a gradient, but for eps above its rounding.
        given = {
            "task": task,
            "batch_size": 6,
            "micro_batch": micro_batch,
            "eps": 1e-4,
            "learning_rate": 1e-2,
        }
        feed = _feed(shards, **given)
        network_model = open_model(str(model)).build()
        network = TrainStep(network_model, feed.shapes, resolve({**given, "mode": mode, "device": "CPU"}))
        data = feed.step(1)
        assert [batch.samples for _, batch in data.batches] == [micro_batch] * (6 // micro_batch)
        for _, batch in data.batches:
            network.accumulate(task, batch, 1.0 / data.supervised)
        numbers = network.measure()
        network.apply(1e-2)
        weights = {p.name: p.asnumpy().copy() for p in network_model.get_parameters()}
        results.append((numbers, weights))
    one, weights = results[0]
    assert max(np.abs(weights[name] - before[name]).max() for name in before) > 1e-3
    for other, other_weights in results[1:]:
        assert other.supervised == one.supervised
        assert other.loss_sum[task] == pytest.approx(one.loss_sum[task], rel=1e-6)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
        for name, array in weights.items():
            np.testing.assert_allclose(other_weights[name], array, rtol=0, atol=1e-5, err_msg=name)


def test_a_step_that_is_discarded_leaves_no_trace(shards: Path, model: Path) -> None:
    from trainer.step import TrainStep

    given = {"task": "text", "batch_size": 2, "micro_batch": 2, "mode": "pynative"}
    feed = _feed(shards, **given)
    network_model = open_model(str(model)).build()
    network = TrainStep(network_model, feed.shapes, resolve({**given, "device": "CPU"}))
    before = {p.name: p.asnumpy().copy() for p in network_model.get_parameters()}
    ((task, batch),) = feed.step(1).batches
    norms = []
    for scale in (1.0, np.nan, 1.0):
        network.accumulate(task, batch, scale)
        norms.append(network.measure().grad_norm)
        network.discard()
    assert np.isnan(norms[1])
    assert norms[2] == norms[0]
    for name, array in {p.name: p.asnumpy() for p in network_model.get_parameters()}.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    with pytest.raises(RuntimeError, match="before measure"):
        network.apply(1e-2)


def test_steps_made_ahead_are_those_made_alone_from_any_start(shards: Path) -> None:
    feed, other = _feed(shards, null_prompt_prob=0.5), _feed(shards, null_prompt_prob=0.5)
    for step, data, waited in steps_ahead(feed, 4, 7):
        assert waited >= 0
        for (task, batch), (_, alone) in zip(data.batches, other.step(step).batches, strict=True):
            assert task in TRAIN
            for name, array in vars(batch).items():
                np.testing.assert_array_equal(array, getattr(alone, name))
    assert [step for step, _, _ in steps_ahead(feed, 5, 4)] == []


def test_steps_made_together_each_say_their_own_samples(shards: Path) -> None:
    for task in ("t2i", "text"):
        feed = _feed(shards, task=task, batch_size=2)
        assert feed.block_steps > 3
        seen = [data.drawn[0] for _, data, _ in steps_ahead(feed, 1, 3)]
        assert seen == [feed.step(step).drawn[0] for step in (1, 2, 3)]
        assert len({sample_id for drawn in seen for sample_id in drawn.sample_ids}) == 6 == TRAIN[task]
        place = int(feed.plan.draw(task, 2).indices[0])
        assert seen[1].sample_ids[0] == feed.train[task].read(place).sample_id


def test_an_error_in_the_thread_ahead_reaches_the_loop(tmp_path: Path) -> None:
    folder = make_trainable(tmp_path / "shards", {"text": 3})
    feed = _feed(folder, task="text")
    (shard,) = (folder / "train").glob("*.arrow")
    place = shard.read_bytes().index(b"pubmedqa/train-0")
    with shard.open("r+b") as file:  # in place: the reader has the file mapped
        file.seek(place)
        file.write(b"q")
    with pytest.raises(UserError, match=r"text-00000.arrow"):
        list(steps_ahead(feed, 1, (BLOCKS_AHEAD + 1) * feed.block_steps))


def test_fixed_samples_are_always_the_same_and_fewer_are_taken_as_there_are(shards: Path) -> None:
    given = {"samples": {"vqa": 3, "t2i": 60}}
    one, other = _feed(shards, **given, seed=1), _feed(shards, **given, seed=2)
    assert len(one.train["vqa"]) == 3
    assert len(one.train["t2i"]) == TRAIN["t2i"]
    assert one.train.keys() == {"vqa", "t2i"}
    np.testing.assert_array_equal(one.train["vqa"].indices, other.train["vqa"].indices)
    more = _feed(shards, samples={"vqa": 4, "t2i": 60})
    assert set(one.train["vqa"].indices) < set(more.train["vqa"].indices)


def test_only_the_named_sources_are_used(shards: Path) -> None:
    assert len(_feed(shards, task="vqa", sources=("medical-vqa",)).train["vqa"]) == TRAIN["vqa"]
    with pytest.raises(UserError, match=r"no train/vqa rows of roco; there are medical-vqa"):
        _feed(shards, task="vqa", sources=("roco",))


def test_validation_takes_so_many_and_none_where_there_are_none(shards: Path, tmp_path: Path) -> None:
    feed = _feed(shards, eval_samples=1)
    batches = {task: list(feed.validation_batches(task)) for task in feed.validation}
    assert {task: sum(batch.samples for batch in some) for task, some in batches.items()} == {
        "vqa": 1,
        "text": 1,
        "t2i": 1,
    }
    assert _feed(shards, eval_samples=0).validation == {}
    bare = make_trainable(tmp_path / "bare", {"text": 2}, validation=0)
    assert _feed(bare, task="text").validation == {}


def test_what_cannot_be_trained_on_is_refused_before_the_first_step(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_length: the longest vqa sample has \d+ tokens, more than 60"):
        _feed(shards, task="vqa", max_length=60)
    text_only = make_trainable(tmp_path / "text", {"text": 2})
    with pytest.raises(UserError, match=r"no train/vqa rows; there are train/text, validation/text"):
        _feed(text_only, task="vqa")


def test_rows_marked_test_are_never_read(tmp_path: Path) -> None:
    folder = make_trainable(tmp_path / "shards", {"text": 2})
    (folder / "train" / "text-00000.arrow").unlink()
    rows = [trainable_row("text", "test", key) for key in range(2)]
    entries = write_shards([make_batch(rows)], folder, split="test", task="text", image_size=SIDE)
    (folder / "test" / "text-00000.arrow").rename(folder / "train" / "text-00000.arrow")
    manifest = load_manifest(folder)
    kept = [entry for entry in manifest.shards if entry.split != "train"]
    changed = [type(e)(**{**vars(e), "path": "train/text-00000.arrow", "split": "train"}) for e in entries]
    write_manifest(folder, type(manifest)(**{**vars(manifest), "shards": (*changed, *kept)}))
    with pytest.raises(UserError, match=r"test"):
        open_verified(folder)
    with pytest.raises(UserError, match=r"marked test, which is never trained on"):
        _feed(folder, task="text")


def test_a_damaged_shard_is_named_before_the_first_step(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(shards, folder)
    shard = folder / "train" / "vqa-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"vqa-00000.arrow: sha256 differs.*vqa-00000.arrow: row"):
        open_run(resolve({"shards": str(folder), "out": str(tmp_path / "out")}), ExitStack())
    assert not (tmp_path / "out").exists()


def test_shards_of_another_tokenizer_or_vq_encoder_are_refused(shards: Path, tmp_path: Path) -> None:
    opened, tokenizer = ShardSet.open(shards), JanusTokenizer(shards / "tokenizer")
    path = make_model(tmp_path / "model")
    config, model = resolve({"model": str(path)}), open_model(str(path))
    check_model(config.model, config.counts, model, opened, tokenizer)

    other = make_trainable(tmp_path / "other", {"t2i": 1}, vq_sha256="0" * 64)
    with pytest.raises(UserError, match=r"image tokens are not those of .*model's VQ encoder"):
        check_model(config.model, config.counts, model, ShardSet.open(other), tokenizer)

    content = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps(content))  # the same tokens, other bytes
    with pytest.raises(UserError, match=r"model/tokenizer.json: not the tokenizer of"):
        check_model(config.model, config.counts, model, opened, tokenizer)
