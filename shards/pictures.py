"""The prepared pictures of a folder of shards: each once, coded without loss, checked when it is read.

`pictures/understanding-00000.arrow` (or `.tar`) holds what SigLIP reads, `pictures/generation-…` the
originals of drawn pictures, where they are kept. Rows name a picture by the sha256 of its raw file.

The codec is chosen by size and speed (docs/shards.md has the table): WebP without loss at its fastest setting
takes a quarter of the raw bytes and decodes in 1.6 ms, outside Python's lock.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from PIL import Image

from janus.common.errors import UserError

FOLDER = "pictures"
UNDERSTOOD, DRAWN = "understanding", "generation"
"""How a picture was prepared, and the first part of its file's name."""

PICTURE_SCHEMA = pa.schema(
    [
        pa.field("image_sha256", pa.string(), nullable=False),  # of the raw file
        pa.field("image", pa.large_binary(), nullable=False),
        pa.field("xxh3", pa.uint64(), nullable=False),  # of the two
    ]
).with_metadata({"schema_version": "2"})


class Codec(NamedTuple):
    """encode: uint8 (H, W, 3) to bytes. decode: bytes and the side of the square to pixels."""

    suffix: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[Any, int], np.ndarray]


def _encode_webp(pixels_HWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "WEBP", lossless=True, method=0, quality=0)
    return buffer.getvalue()


def _decode_webp(data: Any, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
        if image.size != (size, size):
            raise ValueError(f"a picture of {image.size} pixels")
        return np.asarray(image.convert("RGB"))


CODECS = {
    "webp": Codec(".webp", _encode_webp, _decode_webp),
    "raw": Codec(".bin", np.ndarray.tobytes, lambda data, n: np.frombuffer(data, np.uint8).reshape(n, n, 3)),
}
"""By the names of `--pixels`."""


def picture_hash64(image_sha256: str, data: Any) -> int:
    """xxh3_64 of a picture's name and bytes."""
    digest = xxhash.xxh3_64(image_sha256.encode())
    digest.update(data)
    return digest.intdigest()


class PictureFile(NamedTuple):
    """A file of pictures, mapped: names, bytes and hashes in the file's order."""

    path: Path
    names: list[str]
    data: Sequence[memoryview]
    hashes: Sequence[int]

    def problem(self, row: int) -> str | None:
        """What is wrong with a picture, if anything."""
        try:
            if picture_hash64(self.names[row], self.data[row]) == self.hashes[row]:
                return None
        except Exception as error:
            return f"{self.path}: picture {row} cannot be read ({error!r})"
        return f"{self.path}: picture {row} ({self.names[row]}): content does not match its xxh3"


class Pictures:
    """Prepared pictures by name; all files of one kind and codec."""

    def __init__(self, files: Sequence[PictureFile], codec: str, size: int) -> None:
        self._files, self._decode, self._size = files, CODECS[codec].decode, size

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        return {name: (f, row) for f, file in enumerate(self._files) for row, name in enumerate(file.names)}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, names: Sequence[str]) -> list[np.ndarray]:
        """Their pixels, uint8 (size, size, 3), each checked. Raises UserError naming a damaged one."""
        if len(names) < 2 or self._decode is CODECS["raw"].decode:
            return list(map(self._read, names))
        return list(_threads().map(self._read, names))

    def _read(self, name: str) -> np.ndarray:
        if (place := self._places.get(name)) is None:
            raise UserError(f"{self._damage(name)}; build the shards again")
        file, row = self._files[place[0]], place[1]
        if problem := file.problem(row):
            raise UserError(f"{problem}; build the shards again")
        try:
            return self._decode(file.data[row], self._size)
        except (OSError, ValueError):
            what = f"does not decode to {self._size}×{self._size} pixels"
            raise UserError(f"{file.path}: picture {row} ({name}): {what}; build the shards again") from None

    def _damage(self, name: str) -> str:
        """Why there is no such picture: the first whose name may be damaged, if any."""
        problems = (file.problem(row) for file in self._files for row in range(len(file.names)))
        return next(filter(None, problems), f"picture {name} is in none of the folder's pictures")


def read_arrow(path: Path) -> PictureFile:
    """An Arrow file of pictures. Raises an error of Arrow, or ValueError, if it is not one."""
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    if not file.schema.equals(PICTURE_SCHEMA):
        raise ValueError(f"columns {', '.join(file.schema.names)}")
    names: list[str] = []
    hashes: list[int] = []
    data: list[memoryview] = []
    for batch in map(file.get_batch, range(file.num_record_batches)):
        batch.validate(full=True)  # damaged offsets would make Arrow read outside the file
        names += batch["image_sha256"].to_pylist()
        hashes += batch["xxh3"].to_pylist()
        _, offsets, content = batch["image"].buffers()
        ends = np.frombuffer(offsets, np.int64)[batch["image"].offset :][: len(batch) + 1].tolist()
        view = memoryview(content or b"").cast("B")
        data += [view[lo:hi] for lo, hi in pairwise(ends)]
    return PictureFile(path, names, data, hashes)


def picture_batches(pictures: Iterable[tuple[str, bytes]], rows: int) -> Iterator[pa.RecordBatch]:
    """Coded pictures by name as batches of PICTURE_SCHEMA, of `rows` pictures, the last maybe fewer."""
    block: list[tuple[str, bytes, int]] = []
    for name, data in pictures:
        block.append((name, data, picture_hash64(name, data)))
        if len(block) == rows:
            yield _batch(block)
            block = []
    if block:
        yield _batch(block)


def _batch(block: list[tuple[str, bytes, int]]) -> pa.RecordBatch:
    columns = [
        pa.array(column, kind)
        for column, kind in zip(zip(*block, strict=True), PICTURE_SCHEMA.types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PICTURE_SCHEMA)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")
