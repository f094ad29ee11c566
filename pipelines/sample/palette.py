"""The sample's model: a `tiny` network with random weights, whose VQ tokenizer is a palette written by hand.

Each code is a colour, each token the mean colour of its patch: a decoded picture is the encoded one in blocks
of 16 pixels, so that a network trained from nothing draws recognisable pictures. It is the network of
`janus/model/vq.py` with other values: residual branches are zero, convolutions copy their middle tap or
average four pixels. The values fit the VQ sizes of `tiny`: the last GroupNorms need three channels per group.

Two operations of that network are not linear. GroupNorm divides by the deviation of a group's channels: each
colour channel x shares its group with K and −K − x, so that the mean is 0 and the deviation almost constant.
SiLU is the identity far from zero: the colour is shifted there and back.

Shapes: C channels, L latent channels, E code width, V codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from janus.checkpoint.folder import open_model
from janus.model.config import VQConfig
from janus.tokens import JanusTokenizer

if TYPE_CHECKING:
    from janus.model.weights import Source

GROUPS = 32
STEADY = 256.0
"""K: the larger, the less a picture's colours change its GroupNorm; float32's precision bounds it above."""
FAR = 20.0
"""Where SiLU(x) = x to float32's precision, for x within 1 of it."""
LIFT = 8.0
"""Fourth entry of a code (r, g, b, LIFT): only a code's direction counts; this makes brightness count."""


def write_model(folder: Path, tokenizer: Path) -> None:
    """Write the model folder. tokenizer: the folder that is copied and decides the vocabulary."""
    model = open_model("tiny", tokenizer)
    random, palette = model.source(), palette_source(model.config.vq)

    def source(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
        return (palette if name.startswith("model.vqmodel.") else random)(name, shape, kind)

    model.save(None, folder, JanusTokenizer(tokenizer), source)


def palette_source(config: VQConfig) -> Source:
    """Values for every parameter below `model.vqmodel.`"""
    codes_VE = _codebook(config)
    # What a normalised code is multiplied by to become a colour again; lengths differ by 2 %.
    length = np.linalg.norm(codes_VE, axis=1).mean()
    special = {
        "quantize.embedding.weight": codes_VE,
        "quant_conv.weight": np.eye(config.embed_dim, config.latent_channels),
        "post_quant_conv.weight": np.eye(config.latent_channels, config.embed_dim) * length,
    }
    for half, end in (
        ("encoder", config.base_channels * config.channel_multiplier[-1]),
        ("decoder", config.base_channels * config.channel_multiplier[0]),
    ):
        special |= {f"{half}.{name}": value for name, value in _ends(config, half, end).items()}

    def source(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
        name = name.removeprefix("model.vqmodel.")
        value = special.get(name)
        return (_passing(name, shape) if value is None else value.reshape(shape)).astype(np.float32)

    return source


def _codebook(config: VQConfig) -> np.ndarray:
    """(V, E): the colours of an even grid in [−1, 1]³ as (r, g, b, LIFT), then greys between its levels."""
    levels = int(config.num_embeddings ** (1 / 3) + 1e-9)
    axis = np.linspace(-1, 1, levels)
    colours = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    left = config.num_embeddings - len(colours)
    greys = np.repeat(np.linspace(-1, 1, left + 2)[1:-1, None], 3, 1)
    codes = np.zeros((config.num_embeddings, config.embed_dim))
    codes[:, :3] = np.concatenate((colours, greys))
    codes[:, 3] = LIFT
    return codes


def _ends(config: VQConfig, half: str, end: int) -> dict[str, np.ndarray]:
    """First and last layers of the encoder or decoder; end: channels at its end, which settle the groups."""
    group = end // GROUPS
    colour = np.arange(3) * group
    encoder = half == "encoder"
    start = config.base_channels * (1 if encoder else config.channel_multiplier[-1])
    spread, back = np.zeros((start, 3)), np.zeros((config.latent_channels if encoder else 3, end))
    steady, lifted = np.zeros(start), np.zeros(len(back))
    spread[colour, range(3)], spread[colour + 2, range(3)] = 1, -1
    steady[colour + 1], steady[colour + 2] = STEADY, -STEADY
    back[range(3), colour] = 1
    lifted[:3] = -FAR
    if encoder:
        lifted[3] = LIFT
    norm, far = np.zeros(end), np.zeros(end)
    norm[colour], far[colour] = STEADY * (2 / group) ** 0.5, FAR
    inputs = np.zeros((start, 3 if encoder else config.latent_channels))
    inputs[:, :3] = spread
    return {
        "conv_in.weight": _middle_tap(inputs),
        "conv_in.bias": steady,
        "norm_out.weight": norm,
        "norm_out.bias": far,
        "conv_out.weight": _middle_tap(back),
        "conv_out.bias": lifted,
    }


def _passing(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Layers in between: changes of width and resolution copy the channels, all other layers are zero."""
    if not name.endswith("weight"):
        return np.zeros(shape)
    if ".upsample." in name:
        return _middle_tap(np.eye(shape[0], shape[1]))
    if ".downsample." in name:
        kernel = np.zeros(shape)
        kernel[:, :, :2, :2] = np.eye(shape[0], shape[1])[:, :, None, None] / 4
        return kernel
    return np.eye(shape[0], shape[1]).reshape(shape) if "nin_shortcut" in name else np.zeros(shape)


def _middle_tap(matrix: np.ndarray) -> np.ndarray:
    """A 3×3 convolution (outputs, inputs, 3, 3) that is this matrix at every pixel."""
    kernel = np.zeros((*matrix.shape, 3, 3))
    kernel[:, :, 1, 1] = matrix
    return kernel
