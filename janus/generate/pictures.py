"""Generated pictures as PNG files that say what they were made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from janus.common.files import write_file

NAME_LENGTH = 40


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
    write_file(path, lambda beside: picture.save(beside, format="PNG", pnginfo=chunks))
