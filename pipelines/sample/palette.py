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

from pathlib import Path

import numpy as np

from janus.checkpoint.folder import open_model
from janus.model.config import VQConfig
from janus.tokens import JanusTokenizer

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
    random, ends = model.source(), _ends(model.config.vq)

    def source(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
        part = name.removeprefix("model.vqmodel.")
        if part == name:
            return random(name, shape, kind)
        return (ends[part].reshape(shape) if part in ends else _passing(part, shape)).astype(np.float32)

    model.save({}, folder, JanusTokenizer(tokenizer), source)


def _ends(config: VQConfig) -> dict[str, np.ndarray]:
    """The codes, and the layers at both ends of encoder and decoder."""
    codes_VE = _codebook(config)
    # What a normalised code is multiplied by to become a colour again; lengths differ by 2 %.
    length = np.linalg.norm(codes_VE, axis=1).mean()
    latent = config.latent_channels
    wide, narrow = (config.base_channels * config.channel_multiplier[i] for i in (-1, 0))
    return {
        "quantize.embedding.weight": codes_VE,
        "quant_conv.weight": np.eye(config.embed_dim, latent),
        "post_quant_conv.weight": np.eye(latent, config.embed_dim) * length,
        **_half("encoder", config.base_channels, wide, 3, latent),
        **_half("decoder", wide, narrow, latent, 3),
    }


def _codebook(config: VQConfig) -> np.ndarray:
    """(V, E): the colours of an even grid in [−1, 1]³ as (r, g, b, LIFT), then greys between its levels."""
    levels = int(config.num_embeddings ** (1 / 3) + 1e-9)
    colours = np.stack(np.meshgrid(*[np.linspace(-1, 1, levels)] * 3, indexing="ij"), -1).reshape(-1, 3)
    left = config.num_embeddings - len(colours)
    greys = np.repeat(np.linspace(-1, 1, left + 2)[1:-1, None], 3, 1)
    codes = np.zeros((config.num_embeddings, config.embed_dim))
    codes[:, :3], codes[:, 3] = np.concatenate((colours, greys)), LIFT
    return codes


def _half(half: str, start: int, end: int, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    """First and last layers of the encoder or decoder.

    start, end: channels after the first layer and before the last, whose groups end settles; inputs, outputs:
    of the half itself.
    """
    group = end // GROUPS
    colour = np.arange(3) * group
    spread, back = np.zeros((start, inputs)), np.zeros((outputs, end))
    steady, lifted = np.zeros(start), np.zeros(outputs)
    norm, far = np.zeros(end), np.zeros(end)
    spread[colour, range(3)], spread[colour + 2, range(3)] = 1, -1
    steady[colour + 1], steady[colour + 2] = STEADY, -STEADY
    norm[colour], far[colour] = STEADY * (2 / group) ** 0.5, FAR
    back[range(3), colour], lifted[:3] = 1, -FAR
    if half == "encoder":
        lifted[3] = LIFT
    return {
        f"{half}.conv_in.weight": _middle_tap(spread),
        f"{half}.conv_in.bias": steady,
        f"{half}.norm_out.weight": norm,
        f"{half}.norm_out.bias": far,
        f"{half}.conv_out.weight": _middle_tap(back),
        f"{half}.conv_out.bias": lifted,
    }


def _passing(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Layers in between: changes of width and resolution copy the channels, all other layers are zero."""
    if not name.endswith("weight"):
        return np.zeros(shape)
    if ".upsample." in name:
        return _middle_tap(np.eye(shape[0], shape[1]))
    kernel = np.zeros(shape)
    if ".downsample." in name:
        kernel[:, :, :2, :2] = np.eye(shape[0], shape[1])[:, :, None, None] / 4
    return np.eye(shape[0], shape[1]).reshape(shape) if "nin_shortcut" in name else kernel


def _middle_tap(matrix: np.ndarray) -> np.ndarray:
    """A 3×3 convolution (outputs, inputs, 3, 3) that is this matrix at every pixel."""
    kernel = np.zeros((*matrix.shape, 3, 3))
    kernel[:, :, 1, 1] = matrix
    return kernel
