"""Shapes and phantoms: pictures made of a few plain figures, so that a small model can read them."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {"red": (208, 48, 48), "green": (56, 160, 72), "blue": (48, 88, 200), "yellow": (232, 200, 56)}
BACKGROUNDS = {"white": (248, 248, 248), "grey": (128, 128, 128), "black": (16, 16, 16)}
SHAPES = ("circle", "square", "triangle")

COLUMNS = {"left": 0.28, "middle": 0.5, "right": 0.72}
ROWS = {"upper": 0.28, "centre": 0.5, "lower": 0.72}
"""Places of a figure's centre, as shares of the picture's sides."""

TONES = {"bright": 235, "dark": 25}


@dataclass(frozen=True)
class Disc:
    """A lesion of a phantom; centre and radius as shares of the picture's width and height."""

    x: float
    y: float
    radius: float
    tone: int  # grey value


Pair = tuple[float, float]
"""Along width and height."""


def draw_shape(
    shape: str, colour: str, background: str, size: tuple[int, int], centre: Pair, radius: float
) -> Image.Image:
    """One filled figure; centre as shares of `size` (width, height), radius as one of the shorter side."""
    image = Image.new("RGB", size, BACKGROUNDS[background])
    draw = ImageDraw.Draw(image)
    x, y, r = centre[0] * size[0], centre[1] * size[1], radius * min(size)
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=COLOURS[colour])
    return image


def draw_phantom(size: tuple[int, int], discs: list[Disc]) -> Image.Image:
    """A grey body in the dark with discs in it; greyscale, as radiographs are."""
    image = Image.new("L", size, 8)
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.ellipse((0.06 * width, 0.04 * height, 0.94 * width, 0.96 * height), fill=150)
    draw.ellipse((0.09 * width, 0.07 * height, 0.91 * width, 0.93 * height), fill=110)
    for disc in discs:
        x, y, r = disc.x * width, disc.y * height, disc.radius * min(size)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=disc.tone)
    return image
