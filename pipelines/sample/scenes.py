"""Pictures made of a few plain figures, so that a small model can read them; and captioned scenes of them."""

from dataclasses import dataclass
from itertools import product
from random import Random

from PIL import Image, ImageDraw

COLOURS = {"red": (208, 48, 48), "green": (56, 160, 72), "blue": (48, 88, 200), "yellow": (232, 200, 56)}
BACKGROUNDS = {"white": (248, 248, 248), "grey": (128, 128, 128), "black": (16, 16, 16)}
SHAPES = ("circle", "square", "triangle")

COLUMNS = {"left": 0.28, "middle": 0.5, "right": 0.72}
ROWS = {"upper": 0.28, "centre": 0.5, "lower": 0.72}
"""Places of a figure's centre, as shares of the picture's sides."""

TONES = {"bright": 235, "dark": 25}

TILES, TILE = 24, 16
"""Tiles along a side of the mosaic, and pixels along a side of a tile."""
RADIUS = 0.18
"""The figure's radius, as a share of the mosaic's side."""


Size = tuple[int, int]


def draw_shape(
    shape: str, colour: str, background: str, size: Size, centre: tuple[float, float], radius: float
) -> Image.Image:
    """One filled figure; centre as shares of `size` (width, height), radius as one of the shorter side."""
    image = Image.new("RGB", size, BACKGROUNDS[background])
    draw = ImageDraw.Draw(image)
    x, y, r = centre[0] * size[0], centre[1] * size[1], radius * min(size)
    if shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=COLOURS[colour])
    else:
        fill = draw.ellipse if shape == "circle" else draw.rectangle
        fill((x - r, y - r, x + r, y + r), fill=COLOURS[colour])
    return image


def draw_phantom(size: Size, discs: list[tuple[float, float, float, int]]) -> Image.Image:
    """A grey body in the dark with discs in it; greyscale, as radiographs are.

    discs: centre and radius as shares of `size` (width, height), and grey value.
    """
    image = Image.new("L", size, 8)
    draw, (width, height) = ImageDraw.Draw(image), size
    draw.ellipse((0.06 * width, 0.04 * height, 0.94 * width, 0.96 * height), fill=150)
    draw.ellipse((0.09 * width, 0.07 * height, 0.91 * width, 0.93 * height), fill=110)
    for across, down, radius, tone in discs:
        x, y, r = across * width, down * height, radius * min(size)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tone)
    return image


@dataclass(frozen=True)
class Scene:
    """A figure as its caption describes it."""

    shape: str
    colour: str
    background: str
    column: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} on a {self.background} background, at the {self.column}"

    def draw(self) -> Image.Image:
        """A mosaic, framed in the figure's colour, with a grey scale at its left edge.

        A tile is what one image token shows, so few codes describe the picture. What a small network finds
        hard to learn is close by: the row in the scale, one tone per row, and the caption's colour in the
        frame, whose first tiles come when there is little but the caption to attend to.
        """
        centre = COLUMNS[self.column], 0.5
        mosaic = draw_shape(self.shape, self.colour, self.background, (TILES, TILES), centre, RADIUS)
        last = TILES - 1
        ImageDraw.Draw(mosaic).rectangle((0, 0, last, last), outline=COLOURS[self.colour])
        for row in range(TILES):
            mosaic.putpixel((0, row), (255 * row // last,) * 3)
        return mosaic.resize((TILES * TILE, TILES * TILE), Image.Resampling.NEAREST)


def shuffled_scenes(seed: int) -> list[Scene]:
    """All scenes in the seed's order: the sample draws the first ones and leaves out the rest."""
    scenes = [Scene(*parts) for parts in product(SHAPES, COLOURS, BACKGROUNDS, COLUMNS)]
    return Random(f"artwork:{seed}").sample(scenes, len(scenes))
