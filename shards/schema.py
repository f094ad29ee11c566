"""A row of a shard: its columns, its fields as bytes, and what a reader gives: `Sample` or `RowBlock`."""

# Shapes: R rows, K tokens of all rows, L spans of all rows.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 1


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_TURN = pa.struct([_required("user", pa.string()), _required("assistant", pa.string())])
_SPAN = pa.struct([_required("start", pa.int32()), _required("end", pa.int32())])

CONTENT_SCHEMA = pa.schema(
    [
        *(_required(name, pa.string()) for name in ("sample_id", "task", "source", "split", "source_key")),
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
"""What a row says, sample_id being source/source_key and unique; `SCHEMA` adds the hash of it."""

SCHEMA = CONTENT_SCHEMA.append(_required("xxh3", pa.uint64())).with_metadata(
    {"schema_version": str(SCHEMA_VERSION)}
)

TEXT_FIELDS = tuple(field.name for field in CONTENT_SCHEMA if field.type == pa.string())
FIELDS = (
    *TEXT_FIELDS,
    *("history_user_lengths", "history_user", "history_assistant_lengths", "history_assistant"),
    *("input_ids", "span_starts", "span_ends", "num_tokens", "image_tokens", "image"),
)
"""A row as bytes, in the order in which they are hashed. Numbers are little-endian int32 (image_tokens:
uint16); lengths are bytes of UTF-8 per turn. The image comes last, so that it is hashed without a copy."""


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


@dataclass(frozen=True)
class RowBlock:
    """What micro-batches are made of: R rows, their numbers joined.

    lengths_R, spans_R, codes_R: tokens, spans and image tokens of each row, int64; codes_R is −1 where there
    are none. ids_K: int32. starts_L, ends_L: half-open spans of target positions within their row, int32.
    codes: all image tokens, uint16. images: pixels, uint8, None where a row has none.
    """

    sample_ids: list[str]
    tasks: list[str]
    splits: list[str]
    lengths_R: np.ndarray
    ids_K: np.ndarray
    spans_R: np.ndarray
    starts_L: np.ndarray
    ends_L: np.ndarray
    codes_R: np.ndarray
    codes: np.ndarray
    images: Sequence[np.ndarray | None]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Self:
        """The samples, at least one, as a block."""
        starts_L, ends_L = np.concatenate([sample.supervised for sample in samples]).T
        codes = [sample.image_tokens for sample in samples]
        return cls(
            sample_ids=[sample.sample_id for sample in samples],
            tasks=[sample.task for sample in samples],
            splits=[sample.split for sample in samples],
            lengths_R=np.array([len(sample.input_ids) for sample in samples]),
            ids_K=np.concatenate([sample.input_ids for sample in samples]),
            spans_R=np.array([len(sample.supervised) for sample in samples]),
            starts_L=starts_L,
            ends_L=ends_L,
            codes_R=np.array([-1 if own is None else own.size for own in codes]),
            codes=np.concatenate([np.empty(0, np.uint16), *(own for own in codes if own is not None)]),
            images=[sample.image for sample in samples],
        )

    def __len__(self) -> int:
        return len(self.lengths_R)
