"""What the known mistakes cost: each deviates as it says, and the command writes figures for all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from trainer_shards import TOKENS, make_model, make_trainable

from bench.mistaken import Bench, EmptyCaptions, lost_share, mean_scales, to_bfloat16, without_first_tokens
from bench.mistakes import EMPTY, LOW, PANELS, RIGHT, main, verdict
from janus.prompts import PromptRow, encode_samples
from janus.tokens import IGNORE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(shards, model) of very small samples."""
    folder = tmp_path_factory.mktemp("mistakes")
    from janus.checkpoint.folder import open_model

    model = make_model(folder / "model")
    sha256 = open_model(str(model)).vq_encoder_sha256()
    shards = make_trainable(folder / "shards", {"text": 12, "vqa": 12, "t2i": 12}, 4, sha256)
    return shards, model


@pytest.fixture(scope="module")
def bench(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(made[0], str(made[1]), 40, tmp_path_factory.mktemp("out") / "run")


def test_the_command_writes_text_picture_and_figures(made: tuple[Path, Path], tmp_path: Path) -> None:
    out, work = tmp_path / "docs" / "mistakes.md", tmp_path / "work"
    out.parent.mkdir()
    arguments = ["--steps", 2, "--out", out, "--work", work, "--shards", made[0], "--model", made[1]]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    runs = json.loads((work / "figures.json").read_text())["runs"]
    assert {RIGHT, LOW, *PANELS} <= set(runs)
    assert [point["step"] for point in runs[RIGHT]["points"]] == [0, 1, 2]
    figures = [x for run in runs.values() for point in (*run["points"], run["end"]) for x in point.values()]
    assert all(map(math.isfinite, figures))
    for name in {*PANELS} - {EMPTY}:  # in two steps no prompt is nulled
        right = LOW if name.endswith("1e-5") else RIGHT
        assert runs[name]["points"][-1] != runs[right]["points"][-1], name
    text = out.read_text(encoding="utf-8")
    assert f"| {RIGHT} | {runs[RIGHT]['points'][-1]['vqa']:.3f} |" in text
    assert "{" not in text
    assert (out.parent / "images" / "mistakes.png").read_bytes().startswith(b"\x89PNG")


def test_the_first_token_of_each_picture_is_left_out(bench: Bench) -> None:
    data = bench.run.feed.step(1)
    edited = without_first_tokens(data)
    pictures = bench.config.counts["t2i"]
    assert data.supervised - edited.supervised == pictures
    for (task, before), (_, after) in zip(data.batches, edited.batches, strict=True):
        ignored = np.flatnonzero(before.labels_N != after.labels_N)
        assert ignored.tolist() == ([TOKENS * i for i in range(before.samples)] if task == "t2i" else [])
        assert (after.labels_N[ignored] == IGNORE).all()


def test_a_nulled_prompt_becomes_an_empty_caption(bench: Bench) -> None:
    (empty,) = encode_samples(bench.run.tokenizer, [PromptRow("t2i", "")], TOKENS)
    feed, nulled = EmptyCaptions(bench.run), 0
    for step in range(1, 21):
        pairs = zip(bench.run.feed.step(step).batches, feed.step(step).batches, strict=True)
        for (task, right), (_, mistaken) in pairs:
            if task != "t2i" or np.array_equal(right.input_ids_P, mistaken.input_ids_P):
                continue
            samples = np.split(
                mistaken.input_ids_P[: mistaken.tokens],
                np.flatnonzero(mistaken.position_ids_P[: mistaken.tokens] == 0)[1:],
            )
            nulled += sum(np.array_equal(sample, empty.input_ids) for sample in samples)
            np.testing.assert_array_equal(right.labels_N, mistaken.labels_N)
    assert nulled > 0


def test_per_task_means_give_each_task_the_same_weight(bench: Bench) -> None:
    data = bench.run.feed.step(1)
    scales = mean_scales(data)
    weights = dict.fromkeys(scales, 0.0)
    for task, batch in data.batches:
        weights[task] += scales[task] * batch.supervised
    assert list(weights.values()) == pytest.approx([1 / 3] * 3)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100))
def test_rounding_gives_the_nearest_bfloat16(value: float) -> None:
    x = np.array([value], np.float32)
    rounded = to_bfloat16(x)
    assert not (rounded.view(np.uint32) & 0xFFFF).any()
    assert abs(rounded - x)[0] <= max(abs(value) * 2.0**-8, 2.0**-134)
    np.testing.assert_array_equal(to_bfloat16(rounded), rounded)


def test_a_lost_change_is_one_that_rounding_puts_back() -> None:
    before = [np.array([1, 1, 1, 1], np.float32)]
    updated = [np.array([1, 1.00001, 1.5, 0.99999], np.float32)]
    assert lost_share(before, updated, [to_bfloat16(x) for x in updated]) == pytest.approx(2 / 3)


def test_what_chance_does_as_well_does_not_show() -> None:
    assert verdict(1.0, 1.1, 1.2, 1) == "does not show"
    assert verdict(1.0, 1.1, 1.4, 1) == "worse"
    assert verdict(1.0, 1.1, 0.6, 1) == "better"
    assert verdict(0.5, 0.5, 0.4, -1) == "worse"
    assert verdict(0.5, 0.5, 0.6, 0) == "higher"
