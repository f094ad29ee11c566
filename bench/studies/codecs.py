"""Codecs for prepared pictures: `python -m bench.studies.codecs` prints the table of docs/shards.md.

Bytes of a picture, and time to encode and decode it without loss in one thread. PNG and differences hold grey
pictures as one channel; WebP finds out by itself.
"""

# Shapes: H W pixels, C channels.

import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import numpy as np
import pyarrow as pa
from PIL import Image

from bench.measures.workload import HUB
from janus.device import processor
from janus.images import ImagePreparation, decode_image, prepare_understanding
from shards.pictures import CODECS

RADIOGRAPHS, PAINTINGS, PASSES = 60, 9, 5
Coded = tuple[Callable[[np.ndarray], Any], Callable[[Any], np.ndarray]]
"""From pixels, uint8 (H, W, 3), and back."""


def _file(format: str, grey: bool = False, **options: Any) -> Coded:
    """A file of Pillow's. grey: with one channel where one is enough."""

    def encode(pixels_HWC: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        image = Image.fromarray(_channels(pixels_HWC).squeeze() if grey else pixels_HWC)
        image.save(buffer, format, **options)
        return buffer.getvalue()

    def decode(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    return encode, decode


def _channels(pixels_HWC: np.ndarray) -> np.ndarray:
    """One channel where all are the same."""
    first_HW1 = pixels_HWC[..., :1]
    return first_HW1 if (pixels_HWC == first_HW1).all() else pixels_HWC


def _differences(level: int) -> Coded:
    """Differences along each row of pixels, compressed with zstd."""
    codec = pa.Codec("zstd", level)

    def encode(pixels_HWC: np.ndarray) -> tuple[tuple[int, ...], bytes]:
        steps = np.diff(_channels(pixels_HWC), axis=1, prepend=np.uint8(0))
        return steps.shape, codec.compress(steps.tobytes(), asbytes=True)

    def decode(data: tuple[tuple[int, ...], bytes]) -> np.ndarray:
        shape, packed = data
        steps = np.frombuffer(codec.decompress(packed, int(np.prod(shape))), np.uint8).reshape(shape)
        return np.repeat(np.cumsum(steps, axis=1, dtype=np.uint8), 3 // shape[2], axis=2)

    return encode, decode


CANDIDATES: dict[str, Coded] = {
    "PNG, level 1": _file("PNG", grey=True, compress_level=1),
    "WebP, method 0, quality 0 (`--pixels webp`)": (
        CODECS["webp"].encode,
        lambda data: CODECS["webp"].decode(data, 384),
    ),
    "WebP, method 0, quality 75": _file("WEBP", lossless=True, method=0, quality=75),
    "WebP, method 4, quality 75": _file("WEBP", lossless=True, method=4, quality=75),
    "differences, zstd level 1": _differences(1),
    "raw (`--pixels raw`)": (np.ndarray.tobytes, lambda data: CODECS["raw"].decode(data, 384)),
}


def measure(codec: Coded, pictures: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """kB of a picture, ms to encode and to decode it."""
    encode, decode = codec
    coded = [encode(pixels_HWC) for pixels_HWC in pictures]
    for pixels_HWC, data in zip(pictures, coded, strict=True):
        np.testing.assert_array_equal(decode(data), pixels_HWC)
    size = sum(len(data[1] if isinstance(data, tuple) else data) for data in coded)
    return size / len(pictures) / 1000, _milliseconds(encode, pictures), _milliseconds(decode, coded)


def _milliseconds(function: Callable[[Any], Any], values: Sequence[Any]) -> float:
    """Of one call; the fastest of several passes."""
    seconds = []
    for _ in range(PASSES):
        began = time.perf_counter()
        for value in values:
            function(value)
        seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds) / len(values)


@click.command()
def main() -> None:
    """Compare the codecs on radiographs of VQA-RAD and on paintings, as they are prepared for the model."""
    files = sorted((HUB / "medical-vqa/vqa-rad/images").iterdir())[:RADIOGRAPHS]
    files += sorted((HUB / "artwork/paintings/images").iterdir())[:PAINTINGS]
    pictures = [prepare_understanding(decode_image(f.read_bytes()), ImagePreparation()) for f in files]
    click.echo(f"{len(pictures)} pictures, one thread of {processor()}\n")
    click.echo("| codec | kB a picture | ms to encode | ms to decode |\n|---|---|---|---|")
    for name, codec in CANDIDATES.items():
        click.echo("| {} | {:.0f} | {:.1f} | {:.1f} |".format(name, *measure(codec, pictures)))


if __name__ == "__main__":
    main()
