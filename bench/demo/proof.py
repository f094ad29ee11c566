"""Commands run in the open, what a picture shows by its pixels, and what was reached against what must be."""

# Shapes: H W pixels, C channels, K colours.

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image

from bench.measures.link import ROOT
from pipelines.sample.scenes import BACKGROUNDS, COLOURS, COLUMNS, SHAPES, TILES, Scene

SHARES = {"colour": 0.75, "background": 0.75, "shape": 0.6}
"""At least this share of the pictures shows what was asked for."""
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


def command(program: str, *arguments: object) -> None:
    """Run one of the project's commands in the open. Raises ClickException where it fails."""
    words = [program, *map(str, arguments)]
    click.echo(f"$ {' '.join(words)}")
    if subprocess.run([sys.executable, "-m", *words], cwd=ROOT).returncode:
        raise click.ClickException(f"{program} {arguments[0]} failed, see above")


def drawn_by(folder: Path, fact: str) -> dict[str, np.ndarray]:
    """The pictures in a folder, uint8 (H, W, 3), by a fact that each records of itself."""
    pictures = {}
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            pictures[str(picture.info[fact])] = np.asarray(picture.convert("RGB"))
    return pictures


def shares_right(pictures_HWC: Sequence[np.ndarray], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of the pictures that are right in each part."""
    shown = [look(pixels_HWC) for pixels_HWC in pictures_HWC]
    return {
        part: sum(
            seen is not None and getattr(seen, part) == getattr(scene, part)
            for seen, scene in zip(shown, scenes, strict=True)
        )
        / len(scenes)
        for part in CHANCES
    }


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


def prove(found: Sequence[Figure]) -> None:
    """Show every figure. Raises ClickException naming those that do not reach their bound."""
    click.echo("\n".join(figure.line for figure in found))
    missed = [figure.words for figure in found if not figure.holds]
    if missed:
        raise click.ClickException(f"the proof fails: {'; '.join(missed)}")
