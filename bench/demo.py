"""`make demo`: from nothing to answers and pictures on the embedded sample, and the proof that it learned.

It calls the commands that a user has, one after the other, looks at what they leave, and exits with 1 where
a figure does not reach its bound. What is asked is held out: questions of the validation split, and captions
that no training sample has. Their words are known, their combinations are new.
"""

# Shapes: H W pixels, C channels, K colours.

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import polars as pl
from PIL import Image

from bench.measures.link import ROOT
from janus.checkpoint.folder import write_json
from janus.common.files import write_file
from janus.generate.pictures import save_picture
from pipelines.sample.scenes import BACKGROUNDS, COLOURS, COLUMNS, SHAPES, TILES, Scene, shuffled_scenes
from trainer.report.records import EVALUATIONS, History, read_history

BASELINES = 2.0
"""vqa: exact match is at least so many times that of always giving the commonest answer."""
SHARES = {"colour": 0.75, "background": 0.75, "shape": 0.6}
"""t2i: at least this share of the pictures shows what was asked for."""
LOSS_LEFT = 0.25
"""text: validation loss falls to at most this share of what it was."""

WORK = ROOT / "data" / "demo"
SEED = 0
"""What `pipelines sample` takes where none is given."""
HELD_OUT = 0.1
"""Of the rows: enough questions for a figure."""
CHANCES = {
    "colour": len(COLOURS),
    "background": len(BACKGROUNDS),
    "shape": len(SHAPES),
    "column": len(COLUMNS),
}
"""How many values each part of a scene has."""
HIGH_OF_TRIANGLE = 0.38
"""Above this share of itself in the upper half of its box a figure is no triangle (0.25 against 0.5)."""
FILLED_BY_SQUARE = 0.9
"""Above this share of its box a figure is a square (1), not a circle (0.79)."""
DRAWING = ("--guidance", "1.5", "--temperature", "0.7", "--batch", "33")
THUMBNAIL, ACROSS = 96, 8
"""Pixels along a side of a picture in the overview, and how many stand in a row."""


@dataclass(frozen=True)
class Figure:
    """What was reached, what comes without learning, and the bound. rises: more is better."""

    words: str
    reached: float
    without: float
    bound: float
    rises: bool = True

    @property
    def holds(self) -> bool:
        """Whether it is on the right side of its bound."""
        return self.reached >= self.bound if self.rises else self.reached <= self.bound

    @property
    def line(self) -> str:
        """One line of the proof."""
        side, verdict = ("at least" if self.rises else "at most"), ("ok" if self.holds else "FAILS")
        return (
            f"{self.words:<52} {self.reached:.2f}  (untrained {self.without:.2f}, "
            f"{side} {self.bound:.2f})  {verdict}"
        )


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


def command(program: str, *arguments: object) -> None:
    """Run one of the project's commands in the open. Raises ClickException where it fails."""
    words = [program, *map(str, arguments)]
    click.echo(f"$ {' '.join(words)}")
    if subprocess.run([sys.executable, "-m", *words], cwd=ROOT).returncode:
        raise click.ClickException(f"{program} {arguments[0]} failed, see above")


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
    by_caption = {}
    for path in pictures.glob("*.png"):
        with Image.open(path) as picture:
            by_caption[picture.info["prompt"]] = np.asarray(picture.convert("RGB"))
    drawn_HWC = [by_caption[scene.caption] for scene in scenes]
    shown = [look(pixels_HWC) for pixels_HWC in drawn_HWC]
    shares = {
        part: sum(
            seen is not None and getattr(seen, part) == getattr(scene, part)
            for seen, scene in zip(shown, scenes, strict=True)
        )
        / len(scenes)
        for part in CHANCES
    }
    chances = {f"baseline_{part}": 1 / values for part, values in CHANCES.items()}
    content = {"metrics": {"t2i": {"captions": len(scenes), **shares, **chances}}}
    write_file(out / "held-out-captions.json", lambda path: write_json(path, content))
    facts = {f"prompt {i}": scene.caption for i, scene in enumerate(scenes)}
    save_picture(out / "held-out-captions.png", overview(drawn_HWC), facts)
    return shares


def look(pixels_HWC: np.ndarray) -> Scene | None:
    """The scene that a picture (uint8) shows, None if nothing in it has a figure's colour.

    It goes by nearest colours, and by where in its bounding box the figure lies: a triangle mostly in the
    lower half; a square fills the box, a circle π/4 of it. The outermost tiles are ignored.
    """
    width = pixels_HWC.shape[1]
    edge = width // TILES
    pixels_HWC = pixels_HWC[edge:-edge, edge:-edge]
    names = [*COLOURS, *BACKGROUNDS]
    palette_KC = np.array([*COLOURS.values(), *BACKGROUNDS.values()], np.float32)
    distance_HWK = np.square(pixels_HWC[:, :, None].astype(np.float32) - palette_KC).sum(-1)
    nearest_HW = distance_HWK.argmin(-1)
    counts = np.bincount(nearest_HW.ravel(), minlength=len(names))
    figure = int(counts[: len(COLOURS)].argmax())
    if not counts[figure]:
        return None
    y, x = np.nonzero(nearest_HW == figure)
    centre = (edge + x.mean()) / width
    return Scene(
        _shape(x, y),
        names[figure],
        names[len(COLOURS) + int(counts[len(COLOURS) :].argmax())],
        min(COLUMNS, key=lambda column: abs(COLUMNS[column] - centre)),
    )


def _shape(x: np.ndarray, y: np.ndarray) -> str:
    """The figure with pixels at these places."""
    if (y < (y.min() + y.max() + 1) / 2).mean() < HIGH_OF_TRIANGLE:
        return "triangle"
    filled = len(x) / (np.ptp(x) + 1) / (np.ptp(y) + 1)
    return "square" if filled > FILLED_BY_SQUARE else "circle"


def overview(pictures_HWC: Sequence[np.ndarray]) -> np.ndarray:
    """The pictures, small, side by side, uint8 (H, W, 3)."""
    rows = -(-len(pictures_HWC) // ACROSS)
    canvas = Image.new("RGB", (ACROSS * THUMBNAIL, rows * THUMBNAIL), "white")
    for i, pixels_HWC in enumerate(pictures_HWC):
        small = Image.fromarray(pixels_HWC).resize((THUMBNAIL - 4, THUMBNAIL - 4), Image.Resampling.BOX)
        canvas.paste(small, (i % ACROSS * THUMBNAIL + 2, i // ACROSS * THUMBNAIL + 2))
    return np.asarray(canvas)


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


def prove(found: Sequence[Figure]) -> None:
    """Show every figure. Raises ClickException naming those that do not reach their bound."""
    click.echo("\n".join(figure.line for figure in found))
    missed = [figure.words for figure in found if not figure.holds]
    if missed:
        raise click.ClickException(f"the proof fails: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
