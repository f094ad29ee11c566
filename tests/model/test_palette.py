"""The palette in the sample's model: what it encodes, it decodes in blocks of the nearest colours."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from janus.checkpoint.folder import open_model
from janus.generate.pictures import vq_decoder, vq_encoder
from pipelines.sample.scenes import COLOURS, draw_shape

NEAREST = 2 / 9 * 127.5 / 2 + 3
"""Grey values: half a step of 1024 codes' colours, ten levels a channel, and what the network bends them."""
EVEN = {f"grey {grey}": (grey, grey, grey) for grey in (0, 64, 128, 255)} | COLOURS

RoundTrip = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def round_trip(sample_data: Path) -> RoundTrip:
    """Codes (576,) and decoded pixels of a picture."""
    folder = open_model(str(sample_data / "tiny"))
    encode, decode = vq_encoder(folder), vq_decoder(folder)
    return lambda pixels_HWC: (codes_T := encode(pixels_HWC), decode(codes_T))


def _blocks(pixels_HWC: np.ndarray) -> np.ndarray:
    return pixels_HWC.reshape(24, 16, 24, 16, 3)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_figure_comes_back_in_blocks_of_its_colours(round_trip: RoundTrip, colour: str) -> None:
    pixels_HWC = np.asarray(draw_shape("triangle", colour, "grey", (384, 384), (0.4, 0.5), 0.3))
    codes_T, drawn_HWC = round_trip(pixels_HWC)
    asked, drawn = (_blocks(pixels).astype(np.float64).mean((1, 3)) for pixels in (pixels_HWC, drawn_HWC))
    assert np.abs(asked - drawn).max() < NEAREST
    assert np.ptp(_blocks(drawn_HWC), axis=(1, 3)).max() <= 1, "a block is of one colour"
    assert 2 <= len(np.unique(codes_T)) < 40


def test_patches_in_another_order_have_the_same_codes(
    round_trip: RoundTrip, disturb: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Sums over pixels do not hang on where a pixel lies."""
    pixels_HWC = np.asarray(draw_shape("circle", "red", "grey", (384, 384), (0.4, 0.5), 0.3))
    patches_TPPC = _blocks(pixels_HWC).swapaxes(1, 2).reshape(576, 16, 16, 3)
    order_T = disturb(np.arange(576)[::-1])
    moved_HWC = patches_TPPC[order_T].reshape(24, 24, 16, 16, 3).swapaxes(1, 2).reshape(384, 384, 3)
    (codes_T, _), (moved_T, _) = round_trip(pixels_HWC), round_trip(moved_HWC)
    np.testing.assert_array_equal(moved_T, codes_T[order_T])


@pytest.mark.parametrize("name", EVEN)
def test_an_even_picture_has_one_code_of_the_nearest_colour(round_trip: RoundTrip, name: str) -> None:
    """Long sums of equal values stay exact enough: the sums against float64 are in test_ground.py."""
    codes_T, drawn_HWC = round_trip(np.full((384, 384, 3), EVEN[name], np.uint8))
    assert len(np.unique(codes_T)) == 1
    assert np.abs(drawn_HWC.astype(int) - EVEN[name]).max() <= (
        4 if name in ("grey 0", "grey 255") else NEAREST
    )
