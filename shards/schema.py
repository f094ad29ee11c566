"""One row of a shard: its columns, its content hash, and the `Sample` a reader gives.

Whatever holds a row (a record batch, a tar member) first yields its *fields*: one byte view per
entry of `FIELDS`, None for null. The hash and the `Sample` are made from the fields alone, so a row
has one hash and one meaning in every format, batch and chunk.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

SCHEMA_VERSION = 1


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_TURN = pa.struct([_required("user", pa.string()), _required("assistant", pa.string())])
_SPAN = pa.struct([_required("start", pa.int32()), _required("end", pa.int32())])

CONTENT_SCHEMA = pa.schema(
    [
        _required("sample_id", pa.string()),  # source/source_key, unique
        _required("task", pa.string()),
        _required("source", pa.string()),
        _required("split", pa.string()),
        _required("source_key", pa.string()),
        _required("sha256", pa.string()),  # of the raw row: texts and image bytes
        pa.field("image_sha256", pa.string()),  # of the raw image file
        _required("history", pa.list_(_required("item", _TURN))),
        _required("prompt", pa.string()),
        _required("answer", pa.string()),
        _required("input_ids", pa.list_(_required("item", pa.int32()))),
        _required("supervised", pa.list_(_required("item", _SPAN))),
        _required("num_tokens", pa.int32()),
        pa.field("image", pa.large_binary()),  # raw uint8 size×size×3: decoding costs more than reading
        pa.field("image_tokens", pa.list_(_required("item", pa.uint16()))),
    ]
)
"""What a row says; `SCHEMA` adds the hash of it."""

SCHEMA = CONTENT_SCHEMA.append(_required("xxh3", pa.uint64())).with_metadata(
    {"schema_version": str(SCHEMA_VERSION)}
)

TEXT_FIELDS = (
    *("sample_id", "task", "source", "split", "source_key", "sha256"),
    *("image_sha256", "prompt", "answer"),
)
FIELDS = (
    *TEXT_FIELDS,
    *("history_user_lengths", "history_user", "history_assistant_lengths", "history_assistant"),
    *("input_ids", "span_starts", "span_ends", "num_tokens", "image_tokens", "image"),
)
"""Order of a row's byte views. Numbers are little-endian int32 (image_tokens: uint16); lengths are
bytes of UTF-8 per turn. The image comes last, so that it is hashed where it lies, without a copy."""

PLACE = {name: place for place, name in enumerate(FIELDS)}
"""Where a field stands in a row."""

Fields = Sequence[Any]
"""`bytes` or byte-wise `memoryview` per entry of FIELDS, None for null."""

_LENGTHS = struct.Struct(f"<{len(FIELDS)}q")


def content_hash(row: Fields) -> int:
    """xxh3_64 of a row's fields: all lengths (int64, −1 for null), then all bytes.

    The lengths in front keep two rows apart whose bytes only fall together when joined.
    """
    lengths = _LENGTHS.pack(*[-1 if field is None else len(field) for field in row])
    return hash_of(b"".join([lengths, *filter(None, row[:-1])]), row[-1])


def hash_of(small: bytes, image: Any) -> int:
    """The content hash. small: the lengths and all fields but the image, joined. image: its bytes, if any."""
    if not image:
        return xxhash.xxh3_64_intdigest(small)
    digest = xxhash.xxh3_64(small)
    digest.update(image)
    return digest.intdigest()


@dataclass(frozen=True, eq=False)
class Sample:
    """One training sample; arrays are read-only views into the shard.

    history: earlier (user, assistant) turns. input_ids: int32 (num_tokens,). supervised: int32 (n, 2),
    half-open spans of target positions. image: uint8 (size, size, 3). image_tokens: uint16 (576,).
    """

    sample_id: str
    task: str
    source: str
    split: str
    source_key: str
    sha256: str
    image_sha256: str | None
    history: tuple[tuple[str, str], ...]
    prompt: str
    answer: str
    input_ids: np.ndarray
    supervised: np.ndarray
    image: np.ndarray | None
    image_tokens: np.ndarray | None

    def __eq__(self, other: object) -> bool:
        """Equal in every field; arrays also in shape and type."""
        if not isinstance(other, Sample):
            return NotImplemented
        return all(_equal(getattr(self, f.name), getattr(other, f.name)) for f in dataclass_fields(self))

    __hash__ = None  # type: ignore[assignment]


def sample_from_fields(row: Fields, image_size: int) -> Sample:
    """The sample of a row whose hash has been checked (a damaged row may raise anything here)."""
    sample_id, task, source, split, source_key, sha256, image_sha256, prompt, answer = row[:9]
    ids, starts, ends, _, image_tokens, image = row[13:]
    spans_N2 = np.empty((len(starts) // 4, 2), np.int32)
    spans_N2[:, 0] = np.frombuffer(starts, np.int32)
    spans_N2[:, 1] = np.frombuffer(ends, np.int32)
    return Sample(
        sample_id=str(sample_id, "utf-8"),
        task=str(task, "utf-8"),
        source=str(source, "utf-8"),
        split=str(split, "utf-8"),
        source_key=str(source_key, "utf-8"),
        sha256=str(sha256, "utf-8"),
        image_sha256=None if image_sha256 is None else str(image_sha256, "utf-8"),
        history=turns_of(row[9:13]) if row[9] else (),
        prompt=str(prompt, "utf-8"),
        answer=str(answer, "utf-8"),
        input_ids=np.frombuffer(ids, np.int32),
        supervised=spans_N2,
        image=None if image is None else np.frombuffer(image, np.uint8).reshape(image_size, image_size, 3),
        image_tokens=None if image_tokens is None else np.frombuffer(image_tokens, np.uint16),
    )


def turns_of(turns: Fields) -> tuple[tuple[str, str], ...]:
    """(user, assistant) of each earlier turn, from the four history fields; there is at least one."""
    user, assistant = _texts(turns[0], turns[1]), _texts(turns[2], turns[3])
    return tuple(zip(user, assistant, strict=True))


def _texts(lengths: Any, data: Any) -> list[str]:
    ends = np.cumsum(np.frombuffer(lengths, np.int32)).tolist()
    return [str(data[lo:hi], "utf-8") for lo, hi in zip([0, *ends], ends, strict=False)]


def _equal(left: object, right: object) -> bool:
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    return type(left) is type(right) and left == right
