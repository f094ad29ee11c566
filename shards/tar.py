"""The same rows as tar files of the webdataset library: `<key>.json`, `.image.npy`, `.image_tokens.npy`.

`wds.WebDataset(url).decode()` reads them too. Here they are read in any order: one pass over the tar
headers finds each member's place, and its bytes are used where they lie in the memory-mapped file.
"""

from __future__ import annotations

import io
import json
import mmap
import re
import tarfile
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from janus.common.errors import UserError
from janus.prompts import SPLITS, TASKS
from shards.schema import TEXT_FIELDS, Fields

_MEMBER = re.compile(
    rf"((?:{'|'.join(SPLITS)})-(?:{'|'.join(TASKS)})-\d{{5}}-\d{{8}})\.(json|image\.npy|image_tokens\.npy)"
)
_ARRAYS = {"image": np.dtype("u1"), "image_tokens": np.dtype("<u2")}


class TarSink:
    """A tar file being written, one member group per row, without owner or time."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        """Begin it. path: whose name becomes the prefix of the keys."""
        from webdataset.writer import TarWriter

        self._prefix = f"{path.parent.name}-{path.stem}"
        self._rows = 0
        self._tar = TarWriter(file, user="", group="", mode=0o644, mtime=0)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the rows (columns of SCHEMA)."""
        texts = batch.drop_columns(list(_ARRAYS)).to_pylist()
        for row, image, codes in zip(texts, *(batch.column(name) for name in _ARRAYS), strict=True):
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
    """The rows of one tar shard, in any order."""

    def __init__(self, path: Path) -> None:
        """Index the members. Raises UserError naming one that our writer would not have written."""
        self._rows = list(_index(path).values())
        with path.open("rb") as file:
            self._map = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, i: int) -> tuple[Fields, int]:
        """Row i's fields and stored xxh3. A damaged row may raise anything."""
        content = self._json(i)
        return _fields(content, *(self._array(i, name) for name in _ARRAYS)), content["xxh3"]

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens per row, int32 (rows,)."""
        return self._counts[:, 0]

    @property
    def supervised_tokens(self) -> np.ndarray:
        """Supervised tokens per row, int32 (rows,)."""
        return self._counts[:, 1]

    @property
    def row_bytes(self) -> np.ndarray:
        """Bytes of a row's members, int64 (rows,)."""
        return np.array([sum(size for _, size in row.values()) for row in self._rows], np.int64)

    def column(self, name: str) -> pa.Array:
        """One text column."""
        return pa.array([self._json(i)[name] for i in range(len(self))], pa.string())

    @cached_property
    def _counts(self) -> np.ndarray:
        rows = (self._json(i) for i in range(len(self)))
        counts = [(r["num_tokens"], sum(s["end"] - s["start"] for s in r["supervised"])) for r in rows]
        return np.array(counts, np.int32).reshape(-1, 2)

    def _bytes(self, i: int, kind: str) -> memoryview | None:
        if kind not in self._rows[i]:
            return None
        offset, size = self._rows[i][kind]
        return self._map[offset : offset + size]

    def _json(self, i: int) -> dict[str, Any]:
        return json.loads(str(self._bytes(i, "json"), "utf-8"))  # type: ignore[arg-type]

    def _array(self, i: int, name: str) -> memoryview | None:
        """The bytes of an npy member behind its header."""
        member = self._bytes(i, f"{name}.npy")
        if member is None:
            return None
        header = io.BytesIO(member[:256])
        np.lib.format.read_magic(header)
        _, _, kind = np.lib.format.read_array_header_1_0(header)
        if kind != _ARRAYS[name]:
            raise ValueError(f"{name}.npy holds {kind}")
        return member[header.tell() :]


def _index(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """key → member kind → (offset, size), in the order of the file."""
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                if match is None or member.type != tarfile.REGTYPE:
                    raise UserError(
                        f"{path}: member {member.name!r} does not belong in a shard; build it again"
                    )
                if member.offset_data + member.size > size:
                    raise UserError(f"{path}: truncated in member {member.name}; build the shards again")
                rows.setdefault(match[1], {})[match[2]] = (member.offset_data, member.size)
    except (tarfile.TarError, ValueError) as error:
        raise UserError(f"{path}: not a readable tar file ({error}); build the shards again") from None
    return rows


def _fields(content: dict[str, Any], image: memoryview | None, codes: memoryview | None) -> Fields:
    """Byte views in the order of `schema.FIELDS`, from what the members hold."""
    row: list[Any] = [None if content[name] is None else content[name].encode() for name in TEXT_FIELDS]
    for side in ("user", "assistant"):
        turns = [turn[side].encode() for turn in content["history"]]
        row += _int32([len(turn) for turn in turns]), b"".join(turns)
    row.append(_int32(content["input_ids"]))
    row += [_int32([span[side] for span in content["supervised"]]) for side in ("start", "end")]
    return [*row, _int32([content["num_tokens"]]), codes, image]


def _int32(values: list[int]) -> bytes:
    return np.array(values, np.int32).tobytes()
