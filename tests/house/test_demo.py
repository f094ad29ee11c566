"""What `make demo` takes for a proof: right pictures count, wrong ones do not, a missed bound fails."""

import json
from pathlib import Path

import click
import numpy as np
import pytest
from shard_factory import make_batch, make_row

from bench.demo.proof import CHANCES, SHARES, prove
from bench.demo.sample import LOSS_LEFT, figures, held_out, judge
from janus.generate.pictures import save_picture
from pipelines.sample.scenes import Scene, shuffled_scenes
from shards.write import write_shards
from trainer.report.records import read_history

SCENES = shuffled_scenes(0)[:12]


def _history(folder: Path, exact_match: float, loss: float) -> Path:
    """A run's folder as the trainer leaves it, with these figures at its end."""
    (folder / "eval").mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for step, value in ((0, 7.0), (10, loss)):
            print(
                json.dumps({"kind": "validation", "step": step, "loss_per_task": {"text": value}}), file=file
            )
    vqa = {"samples": 9, "exact_match": exact_match, "baseline_exact_match": 0.25}
    (folder / "eval" / "validation.json").write_text(json.dumps({"metrics": {"vqa": vqa}}))
    return folder


@pytest.mark.parametrize("shown", [SCENES, [*SCENES[1:], SCENES[0]]], ids=["asked", "others"])
def test_pictures_that_show_what_was_asked_are_right_and_no_others(
    tmp_path: Path, shown: list[Scene]
) -> None:
    for number, (scene, wanted) in enumerate(zip(shown, SCENES, strict=True)):
        save_picture(tmp_path / f"{number}.png", np.asarray(scene.draw()), {"prompt": wanted.caption})
    alike = {
        part: np.mean([getattr(a, part) == getattr(b, part) for a, b in zip(shown, SCENES, strict=True)])
        for part in CHANCES
    }
    assert (min(alike.values()) == 1) == (shown == SCENES)
    out = tmp_path / "eval"
    out.mkdir()
    assert judge(tmp_path, SCENES, out) == pytest.approx(alike)
    content = json.loads((out / "held-out-captions.json").read_text())
    assert content["metrics"]["t2i"]["captions"] == len(SCENES)
    assert (out / "held-out-captions.png").read_bytes().startswith(b"\x89PNG")


def test_held_out_captions_are_those_without_a_training_sample(tmp_path: Path) -> None:
    rows = [make_row("t2i", "train", i, prompt=scene.caption) for i, scene in enumerate(SCENES)]
    write_shards([make_batch(rows)], tmp_path, split="train", task="t2i")
    assert held_out(tmp_path) == shuffled_scenes(0)[12:]


def test_a_bound_that_is_missed_is_named(tmp_path: Path) -> None:
    good = dict.fromkeys(CHANCES, 1.0)
    bad = good | {"shape": SHARES["shape"] - 0.01}
    prove(figures(read_history(_history(tmp_path / "good", 0.6, 7.0 * LOSS_LEFT)), good))
    missed = figures(read_history(_history(tmp_path / "worse", 0.4, 7.0)), bad)
    with pytest.raises(click.ClickException, match=r"fails: vqa.*; t2i: shape.*; text: held-out loss"):
        prove(missed)
