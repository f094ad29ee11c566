"""Image preparation against the reference implementation's pixels, for every shape of picture."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from paths import GOLDEN, HUB, needs_shared
from PIL import Image
from safetensors.numpy import load_file

from janus.common.errors import UserError
from janus.images import ImagePreparation, decode_image, prepare_generation, prepare_understanding

FOLDER = GOLDEN / "preprocessing"
PREPARATION = ImagePreparation()


@needs_shared
@pytest.mark.parametrize("index", range(6))
def test_pixels_equal_the_reference(index: int) -> None:
    case = json.loads((FOLDER / "images.json").read_text())[index]
    golden = load_file(FOLDER / "images.safetensors")
    image = decode_image((HUB / case["file"]).read_bytes())
    for name, prepare in (("understanding", prepare_understanding), ("generation", prepare_generation)):
        difference = np.abs(prepare(image, PREPARATION).astype(int) - golden[f"{index}.{name}"].astype(int))
        assert difference.max() <= 1, name


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (384, 384), (385, 384), (383, 500)])
def test_every_shape_gives_a_square(size: tuple[int, int]) -> None:
    image = decode_image(_encoded(Image.new("RGB", size, (200, 10, 10))))
    for prepare in (prepare_understanding, prepare_generation):
        pixels = prepare(image, PREPARATION)
        assert pixels.shape == (384, 384, 3)
        assert pixels.dtype == np.uint8


@pytest.mark.parametrize("coloured", [0, 1, 480 * 500])
def test_grey_scaled_as_one_channel_equals_three_channels(coloured: int) -> None:
    pixels_HWC = np.repeat(np.random.default_rng(0).integers(0, 256, (480, 500, 1), np.uint8), 3, axis=2)
    pixels_HWC.reshape(-1, 3)[:coloured, 2] ^= 0x55
    image = Image.fromarray(pixels_HWC)
    expected = np.asarray(image.resize((384, 368), Image.Resampling.BICUBIC))
    assert np.array_equal(prepare_understanding(image, PREPARATION)[8:-8], expected)


def test_a_preprocessor_of_another_normalisation_is_refused(tmp_path: Path) -> None:
    config = {"image_size": 384, "image_mean": [0.4] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="image_mean"):
        ImagePreparation.from_folder(tmp_path)
