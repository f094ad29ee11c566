"""Odd pictures are used with the right pixels; files that are not pictures have their rows rejected."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from raw_data import picture, run_well, vqa_row, write_medical_vqa

from janus.images import FORMATS, ImageError, decode_image
from pipelines.tables import ImageRows, read_table

SIZE = (64, 48)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise() -> Image.Image:
    return Image.effect_noise((200, 200), 50)


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size it does not hold."""
    data = picture()
    header = struct.pack(">II", width, height) + data[24:29]
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


REFUSED = {
    "empty.jpg": b"",
    "text.jpg": b"this is no picture, whatever its name says",
    "truncated.jpg": half(encoded(noise(), "JPEG")),
    "truncated.png": half(encoded(noise())),
    "truncated.gif": half(encoded(noise(), "GIF")),
    "truncated.webp": half(encoded(noise(), "WEBP")),
    "zeroed.png": picture()[:60] + b"\0" * 60,
    "bomb-in-name-only.png": claiming(60_000, 60_000),
    "bomb.png": encoded(Image.new("1", (10_000, 10_000))),
    "bomb.gif": encoded(Image.new("P", (10_000, 10_000)), "GIF"),
    "script.eps": encoded(Image.new("RGB", SIZE), "EPS"),  # Pillow would run it in Ghostscript
    "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "fractions.tiff": encoded(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"),
    "32-bit.tiff": encoded(Image.fromarray(np.full((8, 8), 1 << 20, np.int32)), "TIFF"),
}

RED, WHITE = (255, 0, 0), (255, 255, 255)


def animated(kind: str) -> bytes:
    rest = [Image.new("RGB", SIZE, colour) for colour in ((0, 255, 0), (0, 0, 255))]
    return encoded(Image.new("RGB", SIZE, RED), kind, save_all=True, append_images=rest, lossless=True)


def palette(transparency: int | None = None) -> bytes:
    image = Image.new("P", SIZE, 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, **({} if transparency is None else {"transparency": transparency}))


def deep(value: int) -> bytes:
    return encoded(Image.fromarray(np.full(SIZE[::-1], value, np.uint16)))


def profile(kind: str = "PNG") -> bytes:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return encoded(Image.new("RGB", SIZE, RED), kind, icc_profile=icc)


USED: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "16-bit-white.png": (deep(65535), WHITE),
    "16-bit-grey.png": (deep(128 * 257), (128, 128, 128)),
    "16-bit-dark.png": (deep(200), (1, 1, 1)),
    "16-bit.tiff": (encoded(Image.fromarray(np.full((8, 8), 65535, np.uint16)), "TIFF"), WHITE),
    "palette.png": (palette(), RED),
    "palette-transparent.png": (palette(1), WHITE),
    "cmyk.jpg": (encoded(Image.new("CMYK", SIZE, (0, 255, 255, 0)), "JPEG"), RED),
    "cmyk.tiff": (encoded(Image.new("CMYK", SIZE, (0, 255, 255, 0)), "TIFF"), RED),
    "grey.png": (encoded(Image.new("L", SIZE, 77)), (77, 77, 77)),
    "bilevel.png": (encoded(Image.new("1", SIZE, 1)), WHITE),
    "grey-alpha.png": (encoded(Image.new("LA", SIZE, (0, 0))), WHITE),
    "opaque.png": (encoded(Image.new("RGBA", SIZE, (*RED, 255))), RED),
    "half.png": (encoded(Image.new("RGBA", SIZE, (0, 0, 0, 127))), (128, 128, 128)),
    "clear.png": (encoded(Image.new("RGBA", SIZE, (*RED, 0))), WHITE),
    "clear.webp": (encoded(Image.new("RGBA", SIZE, (*RED, 0)), "WEBP", lossless=True, exact=True), WHITE),
    "colour-key.png": (encoded(Image.new("RGB", SIZE, RED), transparency=RED), WHITE),
    "animated.gif": (animated("GIF"), RED),
    "animated.webp": (animated("WEBP"), RED),
    "animated.png": (animated("PNG"), RED),
    "profile.png": (profile(), RED),
    "profile.jpg": (profile("JPEG"), (254, 0, 0)),
    "broken-profile.png": (encoded(Image.new("RGB", SIZE, RED), icc_profile=b"not a profile"), RED),
    "broken-exif.png": (encoded(Image.new("RGB", SIZE, RED), exif=b"Exif\0\0garbage" * 9), RED),
    "wide.png": (encoded(Image.new("RGB", (5000, 1), RED)), RED),
    "tall.png": (encoded(Image.new("RGB", (1, 5000), RED)), RED),
    "dot.png": (encoded(Image.new("RGB", (1, 1), RED)), RED),
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


def test_bad_pictures_set_their_rows_aside_and_odd_ones_are_used(tmp_path: Path, sample_data: Path) -> None:
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
    prepared = ImageRows(work / "images", "understanding")
    assert len(prepared) == len({data for data, _ in USED.values()})
    centres = {
        sha256: prepared.pixels(i, i + 1)[0, 192, 192]
        for i, sha256 in enumerate(prepared.index[0].to_pylist())
    }
    rows_read = read_table(work / "ingest" / "medical-vqa.rows.arrow").to_pylist()
    for row in rows_read:
        if row["source_key"] in USED:
            colour = USED[row["source_key"]][1]
            assert np.abs(centres[row["image_sha256"]].astype(int) - colour).max() <= 1, row["source_key"]
