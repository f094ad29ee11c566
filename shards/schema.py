"""A row of a shard: its columns, its fields as bytes, and what a reader gives: `Sample` or `RowBlock`."""

# Shapes: R rows, K tokens of all rows, L spans of all rows.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from janus.prompts import Message

SCHEMA_VERSION = 2


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_required("item", kind))


MESSAGE = pa.struct(
    [
        _required("role", pa.string()),  # system, user or assistant; those of one role in a row are one turn
        _required("text", pa.string()),
        _required("pictures", _list(pa.string())),  # sha256 of their files; they stand before the text
    ]
)
SPAN = pa.struct([_required(name, pa.int32()) for name in ("start", "end", "kind")])  # kind: 0 text, 1 image

CONTENT_SCHEMA = pa.schema(
    [
        _required("sample_id", pa.string()),  # source/source_key, unique
        _required("task", pa.string()),
        _required("source", pa.string()),
        _required("split", pa.string()),
        _required("source_key", pa.string()),
        _required("sha256", pa.string()),  # of the raw row: messages with the hashes of their pictures
        _required("messages", _list(MESSAGE)),
        _required("prompt", pa.string()),  # text of the last user turn
        _required("answer", pa.string()),  # text of the last assistant turn
        _required("input_ids", _list(pa.int32())),
        _required("supervised", _list(SPAN)),
        _required("num_tokens", pa.int32()),
        _required("image_tokens", _list(pa.uint16())),  # of all drawn pictures, one after the other
    ]
)
"""What a row says; `SCHEMA` adds the hash of it. Pixels are in the folder's pictures, each picture once."""

SCHEMA = CONTENT_SCHEMA.append(_required("xxh3", pa.uint64())).with_metadata(
    {"schema_version": str(SCHEMA_VERSION)}
)

TEXT_FIELDS = ("sample_id", "task", "source", "split", "source_key", "sha256", "prompt", "answer")
FIELDS = (
    *TEXT_FIELDS,
    *("role_lengths", "roles", "text_lengths", "texts", "picture_counts", "pictures"),
    *("input_ids", "span_starts", "span_ends", "span_kinds", "num_tokens", "image_tokens"),
)
"""A row as bytes, in the order in which they are hashed. Numbers are little-endian int32 (image_tokens:
uint16); lengths are bytes of UTF-8 per message; a picture is 64 hexadecimal digits."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One training sample; arrays are read-only views into the shard.

    input_ids: int32 (num_tokens,). supervised: int32 (n, 3): start, end (exclusive) and kind (TEXT or IMAGE)
    of the spans of target positions. image_tokens: uint16, of all drawn pictures. images: uint8 (size, size,
    3), the understood pictures in order.
    """

    sample_id: str
    task: str
    source: str
    split: str
    source_key: str
    sha256: str
    messages: tuple[Message, ...]
    prompt: str
    answer: str
    input_ids: np.ndarray
    supervised: np.ndarray
    image_tokens: np.ndarray
    images: Sequence[np.ndarray] = ()

    @property
    def understood(self) -> list[str]:
        """sha256 of each picture that the model reads."""
        return [picture for m in self.messages if m.role == "user" for picture in m.pictures]

    @property
    def drawn(self) -> list[str]:
        """sha256 of each picture that the model draws."""
        return [picture for m in self.messages if m.role == "assistant" for picture in m.pictures]


@dataclass(frozen=True)
class RowBlock:
    """What micro-batches are made of: R rows, their numbers joined.

    lengths_R, spans_R, codes_R, images_R: tokens, spans, image tokens and understood pictures of each row,
    int64. ids_K: int32. starts_L, ends_L, kinds_L: spans of target positions within their row, int32. codes:
    all image tokens, uint16. images: all understood pictures, uint8 (size, size, 3).
    """

    sample_ids: list[str]
    tasks: list[str]
    splits: list[str]
    lengths_R: np.ndarray
    ids_K: np.ndarray
    spans_R: np.ndarray
    starts_L: np.ndarray
    ends_L: np.ndarray
    kinds_L: np.ndarray
    codes_R: np.ndarray
    codes: np.ndarray
    images_R: np.ndarray
    images: Sequence[np.ndarray]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Self:
        """The samples, at least one, as a block."""
        starts_L, ends_L, kinds_L = np.concatenate([sample.supervised for sample in samples]).T
        return cls(
            sample_ids=[sample.sample_id for sample in samples],
            tasks=[sample.task for sample in samples],
            splits=[sample.split for sample in samples],
            lengths_R=np.array([len(sample.input_ids) for sample in samples]),
            ids_K=np.concatenate([sample.input_ids for sample in samples]),
            spans_R=np.array([len(sample.supervised) for sample in samples]),
            starts_L=starts_L,
            ends_L=ends_L,
            kinds_L=kinds_L,
            codes_R=np.array([sample.image_tokens.size for sample in samples]),
            codes=np.concatenate([sample.image_tokens for sample in samples]),
            images_R=np.array([len(sample.images) for sample in samples]),
            images=[image for sample in samples for image in sample.images],
        )

    def __len__(self) -> int:
        return len(self.lengths_R)
