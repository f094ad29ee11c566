"""Pictures: to VQ codes and back, one at a time in float32; as PNG files that say what they were made from.

Shapes: H×W pixels, C channels, T tokens of an image.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from janus import device
from janus.checkpoint.folder import ModelFolder
from janus.common.files import write_file

NAME_LENGTH = 40  # characters of a prompt in a file's name


def vq_encoder(folder: ModelFolder) -> Callable[[np.ndarray], np.ndarray]:
    """Gives the codes, uint16 (T,), of a uint8 picture (H, W, 3) that is prepared for generation."""
    from mindspore import Tensor

    encode = device.compiled(folder.build_vq().encode)
    return lambda pixels_HWC: encode(Tensor(pixels_HWC[None]))[0].asnumpy()[0].astype(np.uint16)


def vq_decoder(folder: ModelFolder) -> Callable[[np.ndarray], np.ndarray]:
    """Gives the picture, uint8 (H, W, 3), of codes (T,)."""
    from mindspore import Tensor

    compiled = device.compiled(folder.build_vq().decode)

    def decode(codes_T: np.ndarray) -> np.ndarray:
        picture_HWC = compiled(Tensor(codes_T[None].astype(np.int32))).asnumpy()[0]
        return np.rint((picture_HWC + 1) * 127.5).clip(0, 255).astype(np.uint8)

    return decode


def picture_path(folder: Path, prompt: str, seed: int, number: int) -> Path:
    """`a-blue-vase-seed0-000.png`: the same request names the same file."""
    words = re.sub(r"\W+", "-", prompt.lower())[:NAME_LENGTH].strip("-") or "picture"
    return folder / f"{words}-seed{seed}-{number:03d}.png"


def save_picture(path: Path, pixels_HWC: np.ndarray, facts: Mapping[str, object]) -> None:
    """Write uint8 (H, W, 3) with the facts as text chunks (tEXt; iTXt where Latin-1 does not do)."""
    chunks = PngInfo()
    for name, value in facts.items():
        chunks.add_text(name, str(value))
    picture = Image.fromarray(pixels_HWC)
    write_file(path, lambda tmp: picture.save(tmp, format="PNG", pnginfo=chunks))
