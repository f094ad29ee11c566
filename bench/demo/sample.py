"""`make demo`: from nothing to answers and pictures on the embedded sample, and the proof that it learned.

It calls the commands that a user has, one after the other, looks at what they leave, and exits with 1 where
a figure does not reach its bound. What is asked is held out: questions of the validation split, and captions
that no training sample has. Their words are known, their combinations are new.
"""

# Shapes: H W pixels, C channels.

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import polars as pl

from bench.demo.proof import CHANCES, SHARES, Figure, command, drawn_by, overview, prove, shares_right
from bench.measures.link import ROOT
from janus.checkpoint.folder import write_json
from janus.common.files import write_file
from janus.generate.pictures import save_picture
from pipelines.sample.scenes import Scene, shuffled_scenes
from trainer.report.records import EVALUATIONS, History, read_history

BASELINES = 2.0
"""vqa: exact match is at least so many times that of always giving the commonest answer."""
LOSS_LEFT = 0.25
"""text: validation loss falls to at most this share of what it was."""

WORK = ROOT / "data" / "demo"
SEED = 0
"""What `pipelines sample` takes where none is given."""
HELD_OUT = 0.1
"""Of the rows: enough questions for a figure."""
DRAWING = ("--guidance", "1.5", "--temperature", "0.7", "--batch", "33")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train on the embedded sample from nothing, ask and draw what was held out, check what was learned.

    Everything goes to data/demo, which is emptied first.
    """
    shutil.rmtree(WORK, ignore_errors=True)
    times = [time.perf_counter()]
    build(WORK)
    times.append(time.perf_counter())
    run = WORK / "run"
    model = WORK / "sample" / "tiny"
    command(
        "trainer", "train", "--config", "demo", "--model", model, "--shards", WORK / "shards", "--out", run
    )
    times.append(time.perf_counter())
    command("trainer", "eval", run, "--pictures", 0)
    captions = held_out(WORK / "shards")
    draw(run, captions, WORK / "pictures")
    shares = judge(WORK / "pictures", captions, run / EVALUATIONS)
    command("trainer", "report", run)
    times.append(time.perf_counter())
    parts = (*np.diff(times), times[-1] - times[0])
    click.echo("\nshards {:.0f} s, training {:.0f} s, evaluation {:.0f} s, together {:.0f} s".format(*parts))
    prove(figures(read_history(run), shares))


def build(work: Path) -> None:
    """The sample and its shards."""
    sample = work / "sample"
    command("pipelines", "sample", "--data", sample)
    folders = ("--data", sample, "--work", work / "work", "--out", work / "shards")
    made_for = ("--tokenizer", sample / "tokenizer", "--model", sample / "tiny")
    command("pipelines", "build", *folders, *made_for, "--validation-fraction", HELD_OUT)


def held_out(shards: Path) -> list[Scene]:
    """Scenes whose caption no training sample has."""
    trained = pl.scan_ipc(shards / "train" / "t2i-*.arrow").select("prompt").collect()["prompt"]
    seen = set(trained.str.strip_chars())
    return [scene for scene in shuffled_scenes(SEED) if scene.caption not in seen]


def draw(run: Path, scenes: Sequence[Scene], out: Path) -> None:
    """A picture of each scene, from its caption and the newest checkpoint."""
    newest = max((run / "checkpoints").iterdir())
    draws = [word for scene in scenes for word in ("--draw", scene.caption)]
    command("janus", "generate", newest, "--out", out, *DRAWING, *draws)


def judge(pictures: Path, scenes: Sequence[Scene], out: Path) -> dict[str, float]:
    """Share of the pictures that are right in each part; figures and an overview go where reports look."""
    by_caption = drawn_by(pictures, "prompt")
    drawn_HWC = [by_caption[scene.caption] for scene in scenes]
    shares = shares_right(drawn_HWC, scenes)
    chances = {f"baseline_{part}": 1 / values for part, values in CHANCES.items()}
    content = {"metrics": {"t2i": {"captions": len(scenes), **shares, **chances}}}
    write_file(out / "held-out-captions.json", lambda path: write_json(path, content))
    facts = {f"prompt {i}": scene.caption for i, scene in enumerate(scenes)}
    save_picture(out / "held-out-captions.png", overview(drawn_HWC), facts)
    return shares


def figures(run: History, shares: Mapping[str, float]) -> list[Figure]:
    """Everything that is to be proved."""
    vqa = run.evaluations["validation"]["metrics"]["vqa"]
    baseline = vqa["baseline_exact_match"]
    _, losses = run.series["validation", "loss_per_task/text"]
    words = f"vqa: exact match on {vqa['samples']} held-out questions"
    return [
        Figure(words, vqa["exact_match"], baseline, BASELINES * baseline),
        *(
            Figure(f"t2i: {part} as asked for", shares[part], 1 / CHANCES[part], share)
            for part, share in SHARES.items()
        ),
        Figure("text: held-out loss", losses[-1], losses[0], LOSS_LEFT * losses[0], rises=False),
    ]


if __name__ == "__main__":
    main()
