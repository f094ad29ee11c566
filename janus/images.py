"""Pictures as the model takes them: padded for understanding, cropped for generation; uint8 pixels.

Sizes and the order of operations follow Janus-Pro's reference preprocessor.
"""

import io
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from janus.common.errors import UserError
from janus.common.files import read_json
from janus.model.config import PATCH_SIZE, num_image_tokens

LONGEST = 16
"""Largest ratio of sides that is scaled whole before the crop: 1×5000 would become 384×1,920,000."""
GLANCE = (16, 16)
"""Pixels that are compared first to tell colour from grey."""
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM")
"""Formats that are opened. Pillow has forty more; one, EPS, runs its file in Ghostscript."""


class ImageError(ValueError):
    """Why a picture cannot be used, in a few words."""


@dataclass(frozen=True)
class ImagePreparation:
    """The settings of `preprocessor_config.json`."""

    image_size: int = 384  # side of the square the model sees, pixels
    min_size: int = 14  # no side is scaled below this, pixels
    background: tuple[int, int, int] = (127, 127, 127)  # RGB around a picture that is not square

    @property
    def num_image_tokens(self) -> int:
        """Tokens of one image."""
        return num_image_tokens(self.image_size)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read `preprocessor_config.json` of a model or tokenizer folder.

        Raises UserError if it is missing, broken, or normalises pixels unlike Janus-Pro.
        """
        path = Path(folder) / "preprocessor_config.json"
        content = read_json(path, "a model folder needs it to prepare images")
        for field in ("image_mean", "image_std"):
            if content.get(field, [0.5] * 3) != [0.5] * 3:
                raise UserError(f"{path}: {field} is {content[field]}, Janus-Pro's is [0.5, 0.5, 0.5]")
        size = content.get("image_size", content.get("size", {}))
        if isinstance(size, dict):  # the transformers layout
            size = size.get("height", cls.image_size)
        colour = content.get("background_color", cls.background)
        return cls(int(size), int(content.get("min_size", cls.min_size)), tuple(colour))

    def asdict(self) -> dict:
        """Plain JSON values, for the manifest."""
        return {**asdict(self), "background": list(self.background), "patch_size": PATCH_SIZE}


def decode_image(data: bytes) -> Image.Image:
    """The picture as upright RGB: the first frame, alpha over white, without applying a colour profile.

    Raises ImageError if the data are not a picture, are truncated, or claim more pixels than Pillow allows.
    MemoryError passes: a retry may succeed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow warns from 89 million pixels on; here that is an error, raised before decoding.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            image.load()
            _turn_upright(image)
            return _to_rgb(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its message holds an address in memory
        raise ImageError(f"not a readable picture: none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers do
        raise ImageError(f"not a readable picture ({type(error).__name__}: {error})") from error


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)  # otherwise it copies an upright picture
    except Exception as error:  # Pillow's EXIF parser raises anything; a broken block gives no orientation
        if isinstance(error, MemoryError):
            raise


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        grey_HW = np.asarray(image)
        if grey_HW.min() < 0 or grey_HW.max() > 65535:
            raise ValueError("pixels of more than 16 bits; the file does not say which value is white")
        image = Image.fromarray(((grey_HW.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("pixels are fractions; the file does not say which value is white")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _scale(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bicubic. RGB with equal channels, as in most radiology, is scaled as one channel."""
    # A few pixels reveal most colour pictures; comparing all costs a sixth of scaling them.
    if _is_grey(image.resize(GLANCE, Image.Resampling.NEAREST)) and _is_grey(image):
        return image.getchannel(0).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    return image.resize(size, Image.Resampling.BICUBIC)


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return not any(ImageChops.difference(red, other).getbbox() for other in (green, blue))


def prepare_understanding(image: Image.Image, preparation: ImagePreparation) -> np.ndarray:
    """Scale the longest side to the model's size, pad to a square. uint8 (H, W, 3)."""
    target, longest = preparation.image_size, max(image.size)
    width, height = (max(int(side / longest * target), preparation.min_size) for side in image.size)
    scaled = _scale(image, (width, height))
    square = Image.new("RGB", (target, target), preparation.background)
    square.paste(scaled, ((target - width) // 2, (target - height) // 2))
    return np.asarray(square)


def prepare_generation(image: Image.Image, preparation: ImagePreparation) -> np.ndarray:
    """Scale the short side to the model's size, crop the centre. uint8 (H, W, 3)."""
    target, short = preparation.image_size, min(image.size)
    if max(image.size) > LONGEST * short:
        left, top = (max(side - LONGEST * short, 0) // 2 for side in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    width, height = (target if side == short else int(target * side / short) for side in image.size)
    scaled = _scale(image, (width, height))
    left, top = (round((side - target) / 2) for side in (width, height))
    return np.asarray(scaled.crop((left, top, left + target, top + target)))
