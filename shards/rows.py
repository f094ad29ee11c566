"""Rows in bulk, as the bytes that a shard holds, and their content hash.

One Arrow scalar costs as much as a whole row here, and it trusts the offsets it finds. So the places of all
fields are computed from the offsets at once, and each field is a slice of a memoryview, which clips at the
end of the buffer: a damaged shard gives wrong bytes, which the hash tells, never a read outside the file.
"""

# Shapes: R rows of a block, N rows of all batches, F fields.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Self

import numpy as np
import pyarrow as pa
import xxhash

from janus.prompts import Message
from shards.pictures import Pictures
from shards.schema import CONTENT_SCHEMA, FIELDS, TEXT_FIELDS, RowBlock, Sample

_PLACE = {name: place for place, name in enumerate(FIELDS)}
_SPANS = ("span_starts", "span_ends", "span_kinds")
PICTURE_LENGTH = 64
"""Hexadecimal digits of a sha256."""


@dataclass(frozen=True)
class RowBytes:
    """Rows as they lie in a shard. columns: per entry of FIELDS each row's bytes. lengths_RF: how many."""

    columns: list[Sequence[Any]]
    lengths_RF: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[Any]]) -> Self:
        """At least one row, each with the bytes of every field."""
        lengths = [[len(field) for field in row] for row in rows]
        return cls(list(zip(*rows, strict=True)), np.array(lengths, np.int64))

    def hashes(self) -> list[int]:
        """Each row's content hash: xxh3_64 of all lengths (int64), then of all bytes.

        The lengths in front keep two rows apart whose bytes only agree when joined.
        """
        lengths = np.ascontiguousarray(self.lengths_RF).view(f"V{8 * len(FIELDS)}")[:, 0].tolist()
        return list(map(xxhash.xxh3_64_intdigest, map(b"".join, zip(lengths, *self.columns, strict=True))))

    def block(self, pictures: Pictures) -> RowBlock:
        """The fields that batches are made of. A damaged row may raise anything."""
        understood = [self._understood(i) for i in np.flatnonzero(self.lengths("pictures")).tolist()]
        images_R = np.zeros(len(self.lengths_RF), np.int64)
        images_R[self.lengths("pictures") > 0] = [len(own) for own in understood]
        starts_L, ends_L, kinds_L = (self._numbers(name, np.int32) for name in _SPANS)
        return RowBlock(
            sample_ids=self.texts("sample_id"),
            tasks=self.texts("task"),
            splits=self.texts("split"),
            lengths_R=self.lengths("input_ids") // 4,
            ids_K=self._numbers("input_ids", np.int32),
            spans_R=self.lengths("span_starts") // 4,
            starts_L=starts_L,
            ends_L=ends_L,
            kinds_L=kinds_L,
            codes_R=self.lengths("image_tokens") // 2,
            codes=self._numbers("image_tokens", np.uint16),
            images_R=images_R,
            images=pictures.read([picture for own in understood for picture in own]),
        )

    def sample(self, i: int, pictures: Pictures | None) -> Sample:
        """Row i, with its pictures if they are given. A damaged row may raise anything."""
        row = {name: self.columns[place][i] for name, place in _PLACE.items()}
        spans = [np.frombuffer(row[name], np.int32) for name in _SPANS]
        shown, texts = self._shown(i), _split(row["text_lengths"], row["texts"])
        return Sample(
            **{name: str(row[name], "utf-8") for name in TEXT_FIELDS},
            messages=tuple(Message(role, text, own) for (role, own), text in zip(shown, texts, strict=True)),
            input_ids=np.frombuffer(row["input_ids"], np.int32),
            supervised=np.stack(spans, 1),
            image_tokens=np.frombuffer(row["image_tokens"], np.uint16),
            images=pictures.read(self._understood(i)) if pictures else (),
        )

    def _shown(self, i: int) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(role, pictures) of each message of row i."""
        names = ("role_lengths", "roles", "picture_counts", "pictures")
        lengths, roles, counts, digits = (self.columns[_PLACE[name]][i] for name in names)
        pictures, at = str(digits, "ascii"), 0
        counts_N = np.frombuffer(counts, np.int32).tolist()
        for role, count in zip(_split(lengths, roles), counts_N, strict=True):
            ends = range(at + PICTURE_LENGTH, at + PICTURE_LENGTH * (count + 1), PICTURE_LENGTH)
            yield role, tuple(pictures[end - PICTURE_LENGTH : end] for end in ends)
            at += PICTURE_LENGTH * count

    def _understood(self, i: int) -> list[str]:
        return [picture for role, own in self._shown(i) if role == "user" for picture in own]

    def lengths(self, name: str) -> np.ndarray:
        """Bytes of a field in each row, int64."""
        return self.lengths_RF[:, _PLACE[name]]

    def texts(self, name: str) -> list[str]:
        """A text field of each row."""
        return [str(field, "utf-8") for field in self.columns[_PLACE[name]]]

    def _numbers(self, name: str, kind: type[np.generic]) -> np.ndarray:
        return np.frombuffer(b"".join(self.columns[_PLACE[name]]), kind)


def _split(lengths: Any, data: Any) -> list[str]:
    ends = np.cumsum(np.frombuffer(lengths, np.int32)).tolist()
    return [str(data[lo:hi], "utf-8") for lo, hi in zip([0, *ends], ends, strict=False)]


class ArrowRows:
    """The rows of record batches of SCHEMA or CONTENT_SCHEMA, nothing copied; see `read.Rows`."""

    def __init__(self, parts: Sequence[pa.RecordBatch]) -> None:
        """parts: batches whose columns have passed `schema_problem`."""
        self.parts = [batch for batch in parts if batch.num_rows]
        self._firsts = list(accumulate((len(batch) for batch in self.parts), initial=0))

    def __len__(self) -> int:
        return self._firsts[-1]

    def rows(self, indices_R: np.ndarray) -> RowBytes:
        data, starts_NF, lengths_NF = self._layout
        starts_RF, lengths_RF = starts_NF[indices_R], lengths_NF[indices_R].astype(np.int64)
        ends_RF = starts_RF + lengths_RF
        parts = (np.searchsorted(self._firsts, indices_R, "right") - 1).tolist()
        columns: list[Sequence[Any]] = [[b""] * len(parts)] * len(FIELDS)
        # A slice costs about 130 ns, whatever its size: only fields that hold bytes are sliced.
        for place in np.flatnonzero((lengths_RF > 0).any(0)).tolist():
            buffers, starts, ends = data[place], starts_RF[:, place].tolist(), ends_RF[:, place].tolist()
            columns[place] = [buffers[part][lo:hi] for part, lo, hi in zip(parts, starts, ends, strict=True)]
        return RowBytes(columns, lengths_RF)

    def stored_hashes(self, indices_R: np.ndarray) -> list[int]:
        return self._stored_N[indices_R].tolist()

    def column(self, name: str) -> list[pa.Array]:
        """The chunks of one column, checked to be sound before anything walks them."""
        chunks = [batch.column(name) for batch in self.parts]
        for chunk in chunks:
            chunk.validate(full=True)
        return chunks

    def row_bytes(self) -> np.ndarray:
        """Bytes of each row, int64, without the fields that only count what others hold."""
        derived = ("role_lengths", "text_lengths", "picture_counts", "num_tokens")
        content = [place for name, place in _PLACE.items() if name not in derived]
        return self._layout[2][:, content].sum(1, dtype=np.int64)

    @cached_property
    def _stored_N(self) -> np.ndarray:
        return np.concatenate([np.frombuffer(_fixed(part["xxh3"]), np.uint64) for part in self.parts])

    @cached_property
    def _layout(self) -> tuple[list[tuple[memoryview, ...]], np.ndarray, np.ndarray]:
        """Per field the buffers of all batches; where each row's bytes start in them; how many they are.

        228 bytes a row; no content is touched.
        """
        buffers, starts, lengths = zip(*map(_layout, self.parts), strict=True)
        return list(zip(*buffers, strict=True)), np.concatenate(starts), np.concatenate(lengths)


def row_hashes(rows: pa.RecordBatch | pa.Table) -> np.ndarray:
    """The content hash of every row, uint64 (rows,): of all columns but xxh3 itself.

    Raises ValueError if a column is missing or of another type.
    """
    if problem := schema_problem(rows.schema, CONTENT_SCHEMA):
        raise ValueError(problem)
    arrow = ArrowRows(rows.to_batches() if isinstance(rows, pa.Table) else [rows])
    hashes = arrow.rows(np.arange(len(arrow))).hashes() if len(arrow) else []
    return np.array(hashes, np.uint64)


def schema_problem(found: pa.Schema, expected: pa.Schema) -> str | None:
    """The first expected column that is missing or of another type, in words; None if there is none."""
    for field in expected:
        kind = found.field(field.name).type if field.name in found.names else "missing"
        if kind != field.type:
            return f"column {field.name} is {kind}, expected {field.type}"
    return None


def _layout(batch: pa.RecordBatch) -> tuple[list[memoryview], np.ndarray, np.ndarray]:
    """Per field the bytes that hold its rows; starts, int64 (R, F); lengths, int32 (R, F)."""
    columns = {name: _texts(batch[name]) for name in TEXT_FIELDS}
    rows, messages = _list(batch["messages"])
    for name in ("role", "text"):
        offsets, data = _texts(messages.field(name))
        columns[f"{name}_lengths"] = 4 * rows, memoryview(np.diff(offsets).astype(np.int32).tobytes())
        columns[f"{name}s"] = np.take(offsets, rows, mode="clip"), data
    firsts, names = _list(messages.field("pictures"))
    columns["picture_counts"] = 4 * rows, memoryview(np.diff(firsts).astype(np.int32).tobytes())
    offsets, data = _texts(names)
    columns["pictures"] = np.take(offsets, np.take(firsts, rows, mode="clip"), mode="clip"), data
    for name, width in (("input_ids", 4), ("image_tokens", 2)):
        offsets, values = _list(batch[name])
        columns[name] = width * offsets, _fixed(values)
    offsets, spans = _list(batch["supervised"])
    for name in ("start", "end", "kind"):
        columns[f"span_{name}s"] = 4 * offsets, _fixed(spans.field(name))
    columns["num_tokens"] = 4 * np.arange(len(batch) + 1), _fixed(batch["num_tokens"])
    offsets_FN = [columns[name][0] for name in FIELDS]
    starts_RF = np.stack([offsets[:-1] for offsets in offsets_FN], 1)
    lengths_RF = np.stack([np.diff(offsets) for offsets in offsets_FN], 1).astype(np.int32)
    return [columns[name][1] for name in FIELDS], starts_RF, lengths_RF


def _texts(column: pa.Array) -> tuple[np.ndarray, memoryview]:
    """Offsets, int64 (rows + 1,), and bytes of a string column."""
    _, offsets, data = column.buffers()
    if offsets is None:  # Arrow leaves the buffer out of a column without values
        return np.zeros(len(column) + 1, np.int64), _bytes(data)
    return np.frombuffer(offsets, np.int32)[column.offset :][: len(column) + 1].astype(np.int64), _bytes(data)


def _list(column: pa.ListArray) -> tuple[np.ndarray, pa.Array]:
    """Offsets, int64 (rows + 1,), and values."""
    return column.offsets.to_numpy().astype(np.int64), column.values


def _fixed(column: pa.Array) -> memoryview:
    """Bytes of a fixed-width column from its first row on."""
    width = column.type.bit_width // 8
    return _bytes(column.buffers()[-1])[width * column.offset : width * (column.offset + len(column))]


def _bytes(buffer: pa.Buffer | None) -> memoryview:
    return memoryview(b"" if buffer is None else buffer).cast("B")
