"""What the known mistakes cost: each deviates as it says, and every run gives finite figures."""

import math
from dataclasses import replace

import numpy as np
import pytest
from trainer_shards import TOKENS, make_model, make_trainable

from bench.ascend.emulation.rounding import to_bfloat16
from bench.studies import mistakes
from bench.studies.mistakes import Bench, lost_share, mean_scales, with_empty_captions
from janus.tokens import IGNORE


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("mistakes")
    model = make_model(folder / "model")
    shards = make_trainable(folder / "shards", {"text": 12, "vqa": 12, "t2i": 12}, 4)
    return Bench(shards, str(model), 2, folder / "run")


def test_the_first_token_of_each_picture_is_left_out(bench: Bench) -> None:
    data = bench.run.feed.step(1)
    edited = mistakes.of_pictures(mistakes.without_first_tokens)(data)
    assert data.supervised - edited.supervised == bench.run.config.counts["t2i"]
    for (task, before), (_, after) in zip(data.batches, edited.batches, strict=True):
        if task != "t2i":
            assert after is before
            continue
        ignored = np.flatnonzero(before.image_labels_N != after.image_labels_N)
        assert ignored.tolist() == [TOKENS * i for i in range(before.samples)]
        assert (after.image_labels_N[ignored] == IGNORE).all()


def test_a_nulled_prompt_becomes_a_sample_with_an_empty_caption(bench: Bench) -> None:
    batch, empty = bench.held_out["t2i"][0], bench.empty_caption
    edited = with_empty_captions(mistakes.unprompted(batch, bench.special), empty, bench.special)
    noise = edited.input_ids_P.copy()
    for sample in mistakes._samples(batch):
        start = sample.stop - len(empty)
        assert edited.input_ids_P[start : sample.stop].tolist() == empty.tolist()
        assert edited.position_ids_P[start : sample.stop].tolist() == [*range(len(empty))]
        noise[sample.start : start] = 1
    assert not np.array_equal(noise, edited.input_ids_P)
    scores = [bench.network.evaluate("t2i", x) for x in (edited, replace(edited, input_ids_P=noise))]
    assert scores[0] == scores[1]  # nothing of what is left over is seen
    right = with_empty_captions(batch, empty, bench.special)
    np.testing.assert_array_equal(right.input_ids_P, batch.input_ids_P)  # no prompt of these is nulled


def test_per_task_means_give_each_task_the_same_weight(bench: Bench) -> None:
    data = bench.run.feed.step(1)
    for task, scale in mean_scales(data).items():
        supervised = sum(batch.supervised for name, batch in data.batches if name == task)
        assert scale * supervised == pytest.approx(1 / 3)


def test_a_lost_change_is_one_that_rounding_to_the_nearest_bfloat16_puts_back() -> None:
    before = np.array([1, 1, 1, 1, -1, 3e38, 2.0**-130], np.float32)
    updated = np.array([1, 1.00001, 1.5, 0.99999, -1 - 2**-8, 3e38, 2.0**-130], np.float32)
    rounded = to_bfloat16(updated)
    np.testing.assert_array_equal(rounded[:5], [1, 1, 1.5, 1, -1])
    assert not (rounded.view(np.uint32) & 0xFFFF).any()
    assert (np.abs(rounded - updated) <= np.maximum(np.abs(updated) * 2.0**-8, 2.0**-134)).all()
    np.testing.assert_array_equal(to_bfloat16(rounded), rounded)
    assert lost_share([before], [updated], [rounded]) == pytest.approx(3 / 4)


@pytest.mark.slow
def test_every_run_gives_figures_of_its_own(bench: Bench) -> None:
    runs = mistakes.measure(bench)
    assert all(math.isfinite(figure) for figures in runs.values() for figure in figures.values())
    for name in (mistakes.OTHER, mistakes.FIRST, mistakes.MEANS, mistakes.BFLOAT16):
        assert runs[name] != runs[mistakes.RIGHT], name
    assert runs[mistakes.LOW]["lost"] == 0 < runs[mistakes.LOW_BFLOAT16]["lost"]
    lines = mistakes.table(runs).splitlines()
    assert len(lines) == len(runs) + 2
    assert len({line.count("|") for line in lines}) == 1
