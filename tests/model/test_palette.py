"""The palette in the sample's model: what it encodes, it decodes to the picture in blocks."""

# Shapes: H W pixels, C channels, T tokens.

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from janus.checkpoint.folder import open_model
from janus.generate.pictures import vq_decoder, vq_encoder
from pipelines.sample.scenes import COLOURS, draw_shape

LEVEL = 2 / 9 * 127.5
"""Steps of 1024 codes' colours, ten levels a channel, in grey values."""

RoundTrip = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def round_trip(sample_data: Path) -> RoundTrip:
    folder = open_model(str(sample_data / "tiny"))
    encode, decode = vq_encoder(folder), vq_decoder(folder)

    def run(pixels_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes_T = encode(pixels_HWC)
        return codes_T, decode(codes_T)

    return run


def _blocks(pixels_HWC: np.ndarray) -> np.ndarray:
    return pixels_HWC.reshape(24, 16, 24, 16, 3).astype(np.float64).mean((1, 3))


@pytest.mark.parametrize("colour", COLOURS)
def test_a_figure_comes_back_in_blocks_of_its_colours(round_trip: RoundTrip, colour: str) -> None:
    pixels_HWC = np.asarray(draw_shape("triangle", colour, "grey", (384, 384), (0.4, 0.5), 0.3))
    codes_T, drawn_HWC = round_trip(pixels_HWC)
    assert np.abs(_blocks(pixels_HWC) - _blocks(drawn_HWC)).max() < LEVEL / 2 + 3
    assert np.ptp(drawn_HWC.reshape(24, 16, 24, 16, 3), axis=(1, 3)).max() <= 1, "a block is of one colour"
    assert 2 <= len(np.unique(codes_T)) < 40


@pytest.mark.parametrize("grey", [0, 255])
def test_an_even_picture_keeps_its_brightness(round_trip: RoundTrip, grey: int) -> None:
    codes_T, drawn_HWC = round_trip(np.full((384, 384, 3), grey, np.uint8))
    assert len(np.unique(codes_T)) == 1
    assert np.abs(drawn_HWC.astype(int) - grey).max() <= 4
