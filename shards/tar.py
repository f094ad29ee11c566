"""The same rows and pictures as tar files of the webdataset library.

A row is `<key>.json` and `<key>.image_tokens.npy`; a picture `<sha256>.json` and `<sha256>.webp` (raw pixels:
`.bin`). `wds.WebDataset(url).decode()` and `datasets.load_dataset("webdataset", …)` read them too; an xxh3 is
hexadecimal, as it is too large for the latter's integers. Here they are read in any order: one pass over the
tar headers finds each member, whose bytes are views into the memory-mapped file.
"""

import io
import json
import mmap
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from janus.common.errors import UserError
from janus.prompts import SPLITS, TASKS
from shards.pictures import PictureFile
from shards.rows import RowBytes
from shards.schema import CONTENT_SCHEMA, TEXT_FIELDS

_ROW = re.compile(
    rf"((?:{'|'.join(SPLITS)})-(?:{'|'.join(TASKS)})-\d{{5}}-\d{{8}})\.(json|image_tokens\.npy)"
)
_PICTURE = re.compile(r"([0-9a-f]{64})\.(json|webp|bin)")
_CODES = np.dtype("<u2")


class TarSink:
    """A tar file being written, one group of members per row or picture, without owner or time."""

    def __init__(self, file: BinaryIO, path: Path, suffix: str = "") -> None:
        """path: its name becomes the prefix of the rows' keys. suffix: of a picture's file."""
        from webdataset.writer import TarWriter

        self._prefix, self._suffix, self._rows = f"{path.parent.name}-{path.stem}", suffix, 0
        self._tar = TarWriter(file, user="", group="", mode=0o644, mtime=0)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows (columns of SCHEMA) or pictures (of PICTURE_SCHEMA)."""
        data = "image" if "image" in batch.schema.names else "image_tokens"
        for row, value in zip(batch.drop_columns([data]).to_pylist(), batch[data], strict=True):
            row["xxh3"] = f"{row['xxh3']:016x}"
            content = json.dumps(row, sort_keys=True, ensure_ascii=False).encode()
            if data == "image":
                member = {"__key__": row["image_sha256"], "json": content}
                member[self._suffix.removeprefix(".")] = value.as_buffer().to_pybytes()
            else:
                member = {"__key__": f"{self._prefix}-{self._rows:08d}", "json": content}
                if len(value):
                    member["image_tokens.npy"] = value.values.to_numpy()
            self._tar.write(member)
            self._rows += 1

    def close(self) -> None:
        """Write the end of the archive."""
        self._tar.close()


def read_tar_pictures(path: Path) -> PictureFile:
    """A tar file of pictures. Raises UserError as `read_members`, KeyError if a picture lacks a member."""
    members = read_members(path, _PICTURE)
    facts = list(map(_json, members))
    data = [next(content for kind, content in own.items() if kind != "json") for own in members]
    return PictureFile(path, [f["image_sha256"] for f in facts], data, list(map(_hash, facts)))


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
        return [_hash(_json(self.parts[i])) for i in indices_R.tolist()]

    def column(self, name: str) -> list[pa.Array]:
        if name == "image_tokens":
            values = [np.frombuffer(_codes(row.get("image_tokens.npy")), _CODES) for row in self.parts]
        else:
            values = [_json(row)[name] for row in self.parts]
        return [pa.array(values, CONTENT_SCHEMA.field(name).type)]

    def row_bytes(self) -> np.ndarray:
        """Bytes of each row's members, int64."""
        return np.array([sum(map(len, members.values())) for members in self.parts], np.int64)


def read_members(path: Path, names: re.Pattern[str] = _ROW) -> list[dict[str, memoryview]]:
    """The members of each row of a tar shard by kind, in the order of the file.

    Raises UserError naming a member that our writer would not have written.
    """
    rows: dict[str, dict[str, memoryview]] = {}
    try:
        with path.open("rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = names.fullmatch(member.name)
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


def _hash(content: dict[str, Any]) -> int:
    return int(content["xxh3"], 16)


def _fields(content: dict[str, Any], members: dict[str, memoryview]) -> list[Any]:
    """The bytes of each of `schema.FIELDS`."""
    messages, spans = content["messages"], content["supervised"]
    row: list[Any] = [content[name].encode() for name in TEXT_FIELDS]
    for name in ("role", "text"):
        texts = [message[name].encode() for message in messages]
        row += _int32(map(len, texts)), b"".join(texts)
    row.append(_int32(len(message["pictures"]) for message in messages))
    row.append("".join(picture for message in messages for picture in message["pictures"]).encode())
    row.append(_int32(content["input_ids"]))
    row += [_int32(span[name] for span in spans) for name in ("start", "end", "kind")]
    return [*row, _int32([content["num_tokens"]]), _codes(members.get("image_tokens.npy"))]


def _codes(member: memoryview | None) -> memoryview:
    """The bytes of an npy member behind its header."""
    if member is None:
        return memoryview(b"")
    header = io.BytesIO(member[:256])
    np.lib.format.read_magic(header)
    _, _, found = np.lib.format.read_array_header_1_0(header)
    if found != _CODES:
        raise ValueError(f"an array of {_CODES} holds {found}")
    return member[header.tell() :]


def _int32(values: Iterable[int]) -> bytes:
    return np.array(list(values), np.int32).tobytes()
