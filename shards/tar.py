"""The same rows as tar files of the webdataset library: `<key>.json`, `.image.npy`, `.image_tokens.npy`.

`wds.WebDataset(url).decode()` reads them too. Here they are read in any order: one pass over the tar headers
finds each member, whose bytes are views into the memory-mapped file.
"""

import io
import json
import mmap
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from janus.common.errors import UserError
from janus.prompts import SPLITS, TASKS
from shards.rows import RowBytes
from shards.schema import CONTENT_SCHEMA, TEXT_FIELDS

_MEMBER = re.compile(
    rf"((?:{'|'.join(SPLITS)})-(?:{'|'.join(TASKS)})-\d{{5}}-\d{{8}})\.(json|image\.npy|image_tokens\.npy)"
)
_ARRAYS: dict[str, np.dtype[Any]] = {"image_tokens": np.dtype("<u2"), "image": np.dtype("u1")}


class TarSink:
    """A tar file being written, one member group per row, without owner or time."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        """path: its name becomes the prefix of the keys."""
        from webdataset.writer import TarWriter

        self._prefix = f"{path.parent.name}-{path.stem}"
        self._rows = 0
        self._tar = TarWriter(file, user="", group="", mode=0o644, mtime=0)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the rows (columns of SCHEMA)."""
        texts = batch.drop_columns(list(_ARRAYS)).to_pylist()
        for row, image, codes in zip(texts, batch["image"], batch["image_tokens"], strict=True):
            content = json.dumps(row, sort_keys=True, ensure_ascii=False).encode()
            member: dict[str, Any] = {"__key__": f"{self._prefix}-{self._rows:08d}", "json": content}
            if image.is_valid:
                pixels = np.frombuffer(image.as_buffer(), np.uint8)
                size = round((len(pixels) / 3) ** 0.5)
                member["image.npy"] = pixels.reshape(size, size, 3)
            if codes.is_valid:
                member["image_tokens.npy"] = codes.values.to_numpy()
            self._tar.write(member)
            self._rows += 1

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()


class TarRows:
    """The rows of tar shards, in any order; see `read.Rows`."""

    def __init__(self, parts: Sequence[dict[str, memoryview]]) -> None:
        """parts: the members of each row by kind, as `read_members` finds them."""
        self.parts = list(parts)

    def __len__(self) -> int:
        return len(self.parts)

    def rows(self, indices_R: np.ndarray) -> RowBytes:
        return RowBytes.of([_fields(_json(self.parts[i]), self.parts[i]) for i in indices_R.tolist()])

    def stored_hashes(self, indices_R: np.ndarray) -> list[int]:
        return [_json(self.parts[i])["xxh3"] for i in indices_R.tolist()]

    def column(self, name: str) -> list[pa.Array]:
        return [pa.array([_json(row)[name] for row in self.parts], CONTENT_SCHEMA.field(name).type)]

    def row_bytes(self) -> np.ndarray:
        return np.array([sum(map(len, members.values())) for members in self.parts], np.int64)


def read_members(path: Path) -> list[dict[str, memoryview]]:
    """The members of each row of a tar shard by kind, in the order of the file.

    Raises UserError naming a member that our writer would not have written.
    """
    rows: dict[str, dict[str, memoryview]] = {}
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                if match is None or member.type != tarfile.REGTYPE:
                    raise UserError(
                        f"{path}: member {member.name!r} does not belong in a shard; build it again"
                    )
                end = member.offset_data + member.size
                if end > len(content):
                    raise UserError(f"{path}: truncated in member {member.name}; build the shards again")
                rows.setdefault(match[1], {})[match[2]] = content[member.offset_data : end]
    except (tarfile.TarError, ValueError) as error:
        raise UserError(f"{path}: not a readable tar file ({error}); build the shards again") from None
    return list(rows.values())


def _json(members: dict[str, memoryview]) -> dict[str, Any]:
    return json.loads(str(members["json"], "utf-8"))


def _fields(content: dict[str, Any], members: dict[str, memoryview]) -> list[Any]:
    """The bytes of each of `schema.FIELDS`, None for null."""
    row: list[Any] = [None if content[name] is None else content[name].encode() for name in TEXT_FIELDS]
    for side in ("user", "assistant"):
        turns = [turn[side].encode() for turn in content["history"]]
        row += _int32([len(turn) for turn in turns]), b"".join(turns)
    spans = [[span[side] for span in content["supervised"]] for side in ("start", "end")]
    row += map(_int32, [content["input_ids"], *spans, [content["num_tokens"]]])
    return row + [_array_bytes(members.get(f"{name}.npy"), kind) for name, kind in _ARRAYS.items()]


def _array_bytes(member: memoryview | None, kind: np.dtype) -> memoryview | None:
    """The bytes of an npy member behind its header."""
    if member is None:
        return None
    header = io.BytesIO(member[:256])
    np.lib.format.read_magic(header)
    _, _, found = np.lib.format.read_array_header_1_0(header)
    if found != kind:
        raise ValueError(f"an array of {kind} holds {found}")
    return member[header.tell() :]


def _int32(values: list[int]) -> bytes:
    return np.array(values, np.int32).tobytes()
