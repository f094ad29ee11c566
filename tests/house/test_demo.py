"""What `make demo` takes for a proof: right pictures count, wrong ones do not, a missed bound fails."""

import json
from pathlib import Path

import click
import numpy as np
import pytest
from shard_factory import make_batch, make_row

from bench.demo import CHANCES, LOSS_LEFT, SHARES, figures, held_out, judge, prove
from janus.generate.pictures import save_picture
from pipelines.sample.scenes import Scene, shuffled_scenes
from shards.write import write_shards
from trainer.report.records import read_history

SCENES = shuffled_scenes(0)[:12]


def _save(folder: Path, shown: list[Scene], asked: list[Scene]) -> None:
    for number, (scene, wanted) in enumerate(zip(shown, asked, strict=True)):
        save_picture(folder / f"{number}.png", np.asarray(scene.draw()), {"prompt": wanted.caption})


def _history(folder: Path, exact_match: float, loss: float) -> Path:
    """A run's folder as the trainer leaves it, with these figures at its end."""
    lines = [
        {"kind": "validation", "step": step, "loss_per_task": {"text": value}}
        for step, value in ((0, 7.0), (10, loss))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "eval").mkdir()
    vqa = {"samples": 9, "exact_match": exact_match, "baseline_exact_match": 0.25}
    (folder / "eval" / "validation.json").write_text(json.dumps({"metrics": {"vqa": vqa}}))
    return folder


def test_pictures_that_show_what_was_asked_are_right(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    _save(tmp_path, SCENES, SCENES)
    shares = judge(tmp_path, SCENES, tmp_path / "eval")
    assert shares == dict.fromkeys(CHANCES, 1.0)
    content = json.loads((tmp_path / "eval" / "held-out-captions.json").read_text())
    assert content["metrics"]["t2i"]["captions"] == len(SCENES)
    assert (tmp_path / "eval" / "held-out-captions.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_of_something_else_are_not(tmp_path: Path) -> None:
    shifted = [*SCENES[1:], SCENES[0]]
    (tmp_path / "eval").mkdir()
    _save(tmp_path, shifted, SCENES)
    alike = [
        sum(getattr(a, p) == getattr(b, p) for a, b in zip(shifted, SCENES, strict=True)) for p in CHANCES
    ]
    assert list(judge(tmp_path, SCENES, tmp_path / "eval").values()) == [same / 12 for same in alike]
    assert min(alike) < 12


def test_held_out_captions_are_those_without_a_training_sample(tmp_path: Path) -> None:
    rows = [make_row("t2i", "train", i, prompt=scene.caption) for i, scene in enumerate(SCENES)]
    write_shards([make_batch(rows)], tmp_path, split="train", task="t2i", image_size=384)
    assert held_out(tmp_path) == shuffled_scenes(0)[12:]


def test_a_bound_that_is_missed_is_named(tmp_path: Path) -> None:
    good = dict.fromkeys(CHANCES, 1.0)
    found = figures(read_history(_history(tmp_path, 0.6, 7.0 * LOSS_LEFT)), good)
    prove(found)
    (tmp_path / "worse").mkdir()
    bad = {**good, "shape": SHARES["shape"] - 0.01}
    missed = figures(read_history(_history(tmp_path / "worse", 0.4, 7.0)), bad)
    with pytest.raises(click.ClickException, match=r"fails: vqa.*; t2i: shape.*; text: held-out loss"):
        prove(missed)
