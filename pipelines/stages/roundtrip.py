"""A picture for the eye: originals above what the decoder makes of their codes.

Where encoder, decoder and checkpoint fit together, the lower picture is a blurred twin of the upper one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import click
import numpy as np
import polars as pl
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from janus.checkpoint.folder import ModelFolder, open_model
from janus.common.errors import UserError
from janus.common.files import write_file
from janus.model.config import VQ_WEIGHTS
from pipelines.stage import require_stage
from pipelines.stages.splits import stable_hash
from pipelines.tables import CODE_SCHEMA, ImageRows, RandomRows, read_columns

COLUMNS = 6  # pairs side by side
TILE = 256  # least width of a shown picture, so that its caption can be read
LINE = 20  # height of a line of text
GAP = 8


@dataclass(frozen=True)
class Pair:
    """An original and its decoded codes, both uint8 (H, W, 3)."""

    name: str
    original_HWC: np.ndarray
    decoded_HWC: np.ndarray

    @property
    def error(self) -> float:
        """Mean absolute difference, in levels of 0 to 255."""
        return float(np.abs(self.original_HWC.astype(np.int16) - self.decoded_HWC).mean())


def write_roundtrip(work: Path, model: str, count: int, out: Path) -> None:
    """Decode the codes of `count` pictures of a finished stage vq and write the grid to `out`, a PNG.

    model: the one the codes are of. Raises UserError if there is no text-to-image picture, or `out`
    cannot be written.
    """
    encoded = require_stage("vq", work)
    chosen = choose(_pictures(work), count)
    if not chosen:
        raise UserError(f"{work / 'vq'}: holds no text-to-image picture, so there is nothing to show")
    pairs = _pairs(work, open_model(model), chosen)
    weights = VQ_WEIGHTS[encoded["notes"]["weights"]]
    title = f"{model}: VQ encoder {encoded['notes']['encoder_sha256'][:12]}, {weights}"
    _save(draw_grid(pairs, title), out)
    error = np.mean([pair.error for pair in pairs])
    click.echo(f"vq: {out}: {len(pairs)} pictures above their decoded codes, mean error {error:.1f} of 255")


def choose(pictures: pl.DataFrame, count: int) -> list[tuple[str, int]]:
    """(name, position) of up to `count` pictures, the sources by turns, always the same ones.

    pictures: source, source_key, position (in the index of generation pictures).
    """
    names = pl.concat_str("source", "source_key", separator="/")
    frame = pictures.unique("position", keep="first", maintain_order=True).with_columns(name=names)
    order = pl.Series("order", stable_hash(0, frame["name"].to_list()), dtype=pl.UInt64)
    by_source = frame.with_columns(order).sort("order").partition_by("source", maintain_order=True)
    turns = zip_longest(*(part.select("name", "position").rows() for part in _by_name(by_source)))
    return [picture for picture in chain.from_iterable(turns) if picture is not None][:count]


def _by_name(parts: list[pl.DataFrame]) -> list[pl.DataFrame]:
    return sorted(parts, key=lambda part: part["source"][0])


def _pictures(work: Path) -> pl.DataFrame:
    """What `choose` takes."""
    columns = ["task", "source", "source_key", "image_sha256"]
    sources = require_stage("ingest", work)["notes"]["read"]
    rows = pa.concat_tables([read_columns(work / "ingest" / f"{s}.rows.arrow", columns) for s in sources])
    index = read_columns(work / "images" / "generation.index.arrow", ["image_sha256"])
    positions = index.append_column("position", pa.array(range(index.num_rows), pa.int64()))
    t2i = pl.DataFrame(pl.from_arrow(rows)).filter(pl.col("task") == "t2i")
    return t2i.join(pl.DataFrame(pl.from_arrow(positions)), on="image_sha256", maintain_order="left")


def _pairs(work: Path, folder: ModelFolder, chosen: Sequence[tuple[str, int]]) -> list[Pair]:
    from janus.generate.vq_encode import VQDecoder

    decoder = VQDecoder(folder)
    images = ImageRows(work / "images", "generation")
    codes = RandomRows([work / "vq" / "codes.arrow"], CODE_SCHEMA)
    pairs = []
    for name, position in chosen:
        codes_1T = np.array(codes.take(np.array([position]))["image_tokens"].to_pylist())
        (original_HWC,), (decoded_HWC,) = images.pixels(position, position + 1), decoder.decode(codes_1T)
        pairs.append(Pair(name, original_HWC, decoded_HWC))
    return pairs


def draw_grid(pairs: Sequence[Pair], title: str) -> Image.Image:
    """Each original above its decoded codes above two lines of caption; small pictures enlarged."""
    side = pairs[0].original_HWC.shape[0]
    side *= max(1, TILE // side)
    across = min(len(pairs), COLUMNS)
    width, height = side + GAP, 2 * side + 2 * LINE + GAP
    rows = -(-len(pairs) // across)
    grid = Image.new("RGB", (across * width + GAP, rows * height + LINE + 2 * GAP), "white")
    _text(grid, title, (GAP, GAP), grid.width - 2 * GAP)
    for i, pair in enumerate(pairs):
        x, y = GAP + i % across * width, LINE + 2 * GAP + i // across * height
        for row, pixels_HWC in enumerate((pair.original_HWC, pair.decoded_HWC)):
            tile = Image.fromarray(pixels_HWC).resize((side, side), Image.Resampling.NEAREST)
            grid.paste(tile, (x, y + row * side))
        _text(grid, pair.name, (x, y + 2 * side), side)
        _text(grid, f"mean error {pair.error:.1f} of 255", (x, y + 2 * side + LINE), side)
    return grid


def _text(grid: Image.Image, text: str, at: tuple[int, int], width: int) -> None:
    """One line, cut in its middle to `width` pixels: both ends of a key tell it from others."""
    font = ImageFont.load_default(LINE * 0.7)
    shown, keep = text, len(text)
    while font.getlength(shown) > width and keep > 1:
        keep -= 1
        shown = f"{text[: -(-keep // 2)]}…{text[len(text) - keep // 2 :]}"
    ImageDraw.Draw(grid).text(at, shown, "black", font)


def _save(grid: Image.Image, out: Path) -> None:
    try:
        write_file(out, lambda path: grid.save(path, format="PNG"))
    except OSError as error:
        raise UserError(f"{out}: cannot save the picture ({error.strerror}); choose another file") from None
