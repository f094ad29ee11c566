"""The whole of it can learn: eight samples a task, mixed, are known by heart within a minute."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner
from trainer_shards import make_model, make_trainable

from janus.checkpoint.folder import open_model
from trainer.cli import main
from trainer.report.records import read_history

STEPS, WINDOW = 300, 8
"""Optimizer steps, and how many of the last ones are looked at: each has every sample in it."""


def test_eight_samples_a_task_are_learnt_by_heart(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    encoder = open_model(str(model)).vq_encoder_sha256()
    shards = make_trainable(tmp_path / "shards", {"vqa": 24, "text": 24, "t2i": 24}, 4, encoder)
    options = {
        "model": model,
        "shards": shards,
        "out": tmp_path / "run",
        "samples": "vqa=8,text=8,t2i=8",
        "batch-size": 24,
        "steps": STEPS,
        "learning-rate": 5e-3,
        "schedule": "cosine",
        "null-prompt-prob": 0,  # a nulled prompt says nothing of what to draw
        "eval-samples": 0,
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    result = CliRunner().invoke(main, ["train", *arguments])
    assert result.exit_code == 0, result.output
    series = read_history(tmp_path / "run").series
    for task in ("vqa", "text", "t2i"):
        _, losses = series["step", f"loss_per_task/{task}"]
        assert len(losses) == STEPS
        assert losses[0] > 3, task
        assert max(losses[-WINDOW:]) < 0.05, task
