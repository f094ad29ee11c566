"""The palette in the sample's model: what it encodes, it decodes in blocks, as float64 does."""

# Shapes: H W pixels, C channels, T tokens, E code width, V codes.

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rounding import rounding_bound
from safetensors.numpy import load_file

from janus.checkpoint.folder import open_model
from janus.generate.pictures import vq_decoder, vq_encoder
from janus.model.vq import EPS, GROUPS
from pipelines.sample.palette import LIFT, STEADY
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


class Exact:
    """The palette in float64, from the same weights; its silent residual branches are left out."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        ends = (".conv2.weight", ".proj_out.weight", ".conv2.bias", ".proj_out.bias")
        assert not any(array.any() for name, array in self.tensors.items() if name.endswith(ends))
        codes_VE = self.tensors["quantize.embedding.weight"]
        self.codes_VE = codes_VE / np.linalg.norm(codes_VE, axis=1, keepdims=True)

    def similarity(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """Of each token's latent with each code, (T, V)."""
        x_HWC = self._convolve("encoder.conv_in", pixels_HWC / 127.5 - 1)
        for level in range(4):
            kernel = self.tensors[f"encoder.down.{level}.downsample.conv.weight"]
            assert not kernel[:, :, 2].any()
            assert not kernel[:, :, :, 2].any()
            places = [(y, x) for y in (0, 1) for x in (0, 1)]
            x_HWC = sum(x_HWC[y::2, x::2] @ kernel[:, :, y, x].T for y, x in places)
        x_HWC = self._convolve("encoder.conv_out", self._normalise("encoder.norm_out", x_HWC))
        latent_TE = self._convolve("quant_conv", x_HWC).reshape(-1, self.codes_VE.shape[1])
        return latent_TE / np.linalg.norm(latent_TE, axis=1, keepdims=True) @ self.codes_VE.T

    def decode(self, codes_T: np.ndarray) -> np.ndarray:
        """Grey values (H, W, C), not rounded."""
        side = math.isqrt(len(codes_T))
        z_HWE = self._convolve("post_quant_conv", self.codes_VE[codes_T].reshape(side, side, -1))
        x_HWC = self._convolve("decoder.conv_in", z_HWE).repeat(16, 0).repeat(16, 1)
        for level in range(4):
            kernel = self.tensors[f"decoder.up.{level}.upsample.conv.weight"]
            assert (kernel[:, :, 1, 1] == np.eye(len(kernel))).all()
            assert np.count_nonzero(kernel) == len(kernel)
        x_HWC = self._convolve("decoder.conv_out", self._normalise("decoder.norm_out", x_HWC))
        return ((x_HWC + 1) * 127.5).clip(0, 255)

    def _convolve(self, name: str, x_HWC: np.ndarray) -> np.ndarray:
        """A convolution of which only the middle tap is not zero."""
        kernel = self.tensors[f"{name}.weight"]
        middle = kernel.shape[-1] // 2
        assert np.count_nonzero(kernel) == np.count_nonzero(kernel[:, :, middle, middle])
        return x_HWC @ kernel[:, :, middle, middle].T + self.tensors[f"{name}.bias"]

    def _normalise(self, name: str, x_HWC: np.ndarray) -> np.ndarray:
        """GroupNorm and SiLU."""
        groups = x_HWC.reshape(-1, GROUPS, x_HWC.shape[2] // GROUPS)
        mean, variance = (f(groups, axis=(0, 2), keepdims=True) for f in (np.mean, np.var))
        x_HWC = ((groups - mean) / np.sqrt(variance + EPS)).reshape(x_HWC.shape)
        x_HWC = x_HWC * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]
        return x_HWC / (1 + np.exp(-x_HWC))


@pytest.fixture(scope="module")
def exact(sample_data: Path) -> Exact:
    prefix = "model.vqmodel."
    tensors = load_file(sample_data / "tiny" / "model.safetensors")
    return Exact({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})


def test_patches_in_another_order_have_the_same_codes(
    round_trip: RoundTrip, disturb: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Sums over pixels do not hang on where a pixel lies."""
    pixels_HWC = np.asarray(draw_shape("circle", "red", "grey", (384, 384), (0.4, 0.5), 0.3))
    patches_TPPC = pixels_HWC.reshape(24, 16, 24, 16, 3).swapaxes(1, 2).reshape(576, 16, 16, 3)
    order_T = disturb(np.arange(576)[::-1])
    moved_HWC = patches_TPPC[order_T].reshape(24, 24, 16, 16, 3).swapaxes(1, 2).reshape(384, 384, 3)
    (codes_T, _), (moved_T, _) = round_trip(pixels_HWC), round_trip(moved_HWC)
    np.testing.assert_array_equal(moved_T, codes_T[order_T])


EVEN = {f"grey {grey}": (grey, grey, grey) for grey in (0, 64, 128, 255)} | COLOURS


@pytest.mark.parametrize("name", EVEN)
def test_an_even_picture_has_the_colour_of_float64(round_trip: RoundTrip, exact: Exact, name: str) -> None:
    """Within 1 grey value; another code only where its similarity is within rounding of the best.

    In float64 one token's patch stands for the whole picture: the means over both are the same.
    """
    codes_T, drawn_HWC = round_trip(np.full((384, 384, 3), EVEN[name], np.uint8))
    assert len(np.unique(codes_T)) == 1
    (similarity_V,) = exact.similarity(np.full((16, 16, 3), EVEN[name]))
    # A colour's GroupNorm takes the mean of values near STEADY; codes are LIFT long and LEVEL apart.
    off = rounding_bound(STEADY, terms=384 * 384)
    assert similarity_V.max() - similarity_V[codes_T[0]] <= off / LIFT * (LEVEL / 127.5 / LIFT)
    assert np.abs(drawn_HWC - exact.decode(codes_T[:1])[0, 0]).max() <= 1
    if name in ("grey 0", "grey 255"):
        assert np.abs(drawn_HWC.astype(int) - EVEN[name]).max() <= 4
