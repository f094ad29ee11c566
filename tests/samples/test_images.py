"""Pictures have the right pixels, odd ones too; rows of files that are no pictures are rejected."""

import io
import json
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from paths import GOLDEN, HUB, needs_shared
from PIL import Image, ImageCms
from raw_data import picture, run_well, vqa_row, write_medical_vqa
from safetensors.numpy import load_file

from janus.common.errors import UserError
from janus.images import (
    FORMATS,
    ImageError,
    ImagePreparation,
    decode_image,
    prepare_generation,
    prepare_understanding,
)
from pipelines.tables import ImageRows, read_table

SIZE = (64, 48)
PREPARATION = ImagePreparation()
FOLDER = GOLDEN / "preprocessing"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode: str, colour: object, kind: str = "PNG", size: tuple = SIZE, **options: object) -> bytes:
    return encoded(Image.new(mode, size, colour), kind, **options)


def filled(value: object, kind: str = "PNG") -> bytes:
    """Of one channel, with values of that numpy type."""
    return encoded(Image.fromarray(np.full((8, 8), value)), kind)


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size it does not hold."""
    data = picture()
    header = struct.pack(">II", width, height) + data[24:29]
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


def cut_off(kind: str) -> bytes:
    data = encoded(Image.effect_noise((200, 200), 50), kind)
    return data[: len(data) // 2]


REFUSED = {
    "empty.jpg": b"",
    "text.jpg": b"this is no picture, whatever its name says",
    **{f"truncated.{kind.lower()}": cut_off(kind) for kind in ("JPEG", "PNG", "GIF", "WEBP")},
    "zeroed.png": picture()[:60] + b"\0" * 60,
    "bomb-in-name-only.png": claiming(60_000, 60_000),
    "bomb.png": flat("1", 0, size=(10_000, 10_000)),
    "bomb.gif": flat("P", 0, "GIF", (10_000, 10_000)),
    "script.eps": flat("RGB", 0, "EPS"),  # Pillow would run it in Ghostscript
    "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "fractions.tiff": filled(np.float32(0.5), "TIFF"),
    "32-bit.tiff": filled(np.int32(1 << 20), "TIFF"),
}

RED, WHITE, GREY = (255, 0, 0), (255, 255, 255), (128, 128, 128)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def animated(kind: str) -> bytes:
    rest = [Image.new("RGB", SIZE, colour) for colour in ((0, 255, 0), (0, 0, 255))]
    return flat("RGB", RED, kind, save_all=True, append_images=rest, lossless=True)


def palette(**transparency: int) -> bytes:
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, **transparency)


USED: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "16-bit-white.png": (filled(np.uint16(65535)), WHITE),
    "16-bit-grey.png": (filled(np.uint16(128 * 257)), GREY),
    "16-bit-dark.png": (filled(np.uint16(200)), (1, 1, 1)),
    "16-bit.tiff": (filled(np.uint16(65535), "TIFF"), WHITE),
    "palette.png": (palette(), RED),
    "palette-transparent.png": (palette(transparency=1), WHITE),
    "cmyk.jpg": (flat("CMYK", (0, 255, 255, 0), "JPEG"), RED),
    "cmyk.tiff": (flat("CMYK", (0, 255, 255, 0), "TIFF"), RED),
    "grey.png": (flat("L", 77), (77, 77, 77)),
    "bilevel.png": (flat("1", 1), WHITE),
    "grey-alpha.png": (flat("LA", (0, 0)), WHITE),
    "opaque.png": (flat("RGBA", (*RED, 255)), RED),
    "half.png": (flat("RGBA", (0, 0, 0, 127)), GREY),
    "clear.png": (flat("RGBA", (*RED, 0)), WHITE),
    "clear.webp": (flat("RGBA", (*RED, 0), "WEBP", lossless=True, exact=True), WHITE),
    "colour-key.png": (flat("RGB", RED, transparency=RED), WHITE),
    **{f"animated.{kind}": (animated(kind), RED) for kind in ("GIF", "WEBP", "PNG")},
    "profile.png": (flat("RGB", RED, icc_profile=PROFILE), RED),
    "profile.jpg": (flat("RGB", RED, "JPEG", icc_profile=PROFILE), (254, 0, 0)),
    "broken-profile.png": (flat("RGB", RED, icc_profile=b"not a profile"), RED),
    "broken-exif.png": (flat("RGB", RED, exif=b"Exif\0\0garbage" * 9), RED),
    **{f"{w}x{h}.png": (flat("RGB", RED, size=(w, h)), RED) for w, h in ((5000, 1), (1, 5000), (1, 1))},
    "named.txt": (picture(RED), RED),  # the content counts, not the name
}


@pytest.mark.parametrize("name", USED)
def test_an_odd_picture_has_the_right_colour(name: str) -> None:
    data, colour = USED[name]
    image = decode_image(data)
    assert image.mode == "RGB"
    assert np.asarray(image).reshape(-1, 3).tolist() == [list(colour)] * (image.width * image.height)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_whatever_way_a_camera_was_held_the_picture_stands_upright(kind: str, orientation: int) -> None:
    """A picture with a bright top left quarter, stored turned as its EXIF says."""
    upright = Image.new("L", (40, 20))
    upright.paste(255, (0, 0, 20, 10))
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # stored by the inverse of what will be applied
    stored = upright.transpose(turned[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = np.asarray(decode_image(encoded(stored, kind, exif=exif)).convert("L"))
    assert seen.shape == (20, 40)
    assert seen[:8, :18].min() > 230
    assert max(seen[12:].max(), seen[:8, 22:].max()) < 25


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused(name: str) -> None:
    with pytest.raises(ImageError, match="not a readable picture"):
        decode_image(REFUSED[name])


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    tracemalloc.start()
    for name in ("bomb.png", "bomb.gif", "bomb-in-name-only.png"):
        with pytest.raises(ImageError, match="DecompressionBomb"):
            decode_image(REFUSED[name])
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_no_format_is_opened_that_runs_a_program_or_reads_another_file() -> None:
    assert not {"EPS", "WMF", "MPEG", "FITS", "HDF5", "GRIB", "BUFR"} & set(FORMATS)


def test_rows_of_bad_pictures_are_rejected_and_odd_ones_are_used(tmp_path: Path, sample_data: Path) -> None:
    images = {**REFUSED, **{name: data for name, (data, _) in USED.items()}}
    rows = [vqa_row(name, name, f"<image>\nWhat is in {name}?", "A thing") for name in images]
    write_medical_vqa(tmp_path, rows, images)
    work = tmp_path / "work"
    run_well("ingest", "--data", tmp_path, "--work", work)
    run_well("images", "--work", work, "--tokenizer", sample_data / "tokenizer", "--max-reject-rate", 1)
    rejects = read_table(work / "rejects.arrow").to_pylist()
    assert {row["source_key"] for row in rejects} == set(REFUSED)
    assert {(row["stage"], row["reason"]) for row in rejects} == {("images", "image_unreadable")}
    assert all(row["detail"] for row in rejects)
    assert not any(" at 0x" in row["detail"] for row in rejects)  # the same words at every build
    prepared = ImageRows(work / "images", "understanding", "webp")
    assert len(prepared) == len({data for data, _ in USED.values()})
    places = {sha256: i for i, sha256 in enumerate(prepared.index[0].to_pylist())}
    for row in read_table(work / "ingest" / "medical-vqa.rows.arrow").to_pylist():
        if row["source_key"] in USED:
            i = places[row["messages"][0]["pictures"][0]]
            difference = prepared.pixels(i, 384)[192, 192].astype(int) - USED[row["source_key"]][1]
            assert np.abs(difference).max() <= 1, row["source_key"]


@needs_shared
@pytest.mark.parametrize("index", range(6))
def test_pixels_equal_the_reference(index: int) -> None:
    case = json.loads((FOLDER / "images.json").read_text())[index]
    golden = load_file(FOLDER / "images.safetensors")
    image = decode_image((HUB / case["file"]).read_bytes())
    for name, prepare in (("understanding", prepare_understanding), ("generation", prepare_generation)):
        difference = np.abs(prepare(image, PREPARATION).astype(int) - golden[f"{index}.{name}"].astype(int))
        assert difference.max() <= 1, name


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (384, 384), (385, 384), (383, 500)])
def test_every_shape_gives_a_square(size: tuple[int, int]) -> None:
    image = decode_image(picture(size=size))
    for prepare in (prepare_understanding, prepare_generation):
        pixels = prepare(image, PREPARATION)
        assert (pixels.shape, pixels.dtype) == ((384, 384, 3), np.uint8)


@pytest.mark.parametrize("coloured", [0, 1, 480 * 500])
def test_grey_scaled_as_one_channel_equals_three_channels(coloured: int) -> None:
    pixels_HWC = np.repeat(np.random.default_rng(0).integers(0, 256, (480, 500, 1), np.uint8), 3, axis=2)
    pixels_HWC.reshape(-1, 3)[:coloured, 2] ^= 0x55
    image = Image.fromarray(pixels_HWC)
    expected = np.asarray(image.resize((384, 368), Image.Resampling.BICUBIC))
    assert np.array_equal(prepare_understanding(image, PREPARATION)[8:-8], expected)


def test_a_preprocessor_of_another_normalisation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"image_size": 384, "image_mean": [0.4, 0.4, 0.4]}')
    with pytest.raises(UserError, match="image_mean"):
        ImagePreparation.from_folder(tmp_path)
