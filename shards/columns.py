"""A record batch as plain buffers: where each field of each row lies, without an object per value.

Arrow's own scalars cost about as much per value as a whole row costs here, and they trust the
offsets they find; memoryviews clip at the end of the buffer, so a damaged batch gives wrong bytes
(which the hash tells), never a read outside the file.
"""

# Shapes: R rows of the batch, F fields.

from __future__ import annotations

from functools import cached_property

import numpy as np
import pyarrow as pa

from shards.schema import FIELDS, PLACE, TEXT_FIELDS, Fields

_EMPTY = memoryview(b"")
_DERIVED = ("history_user_lengths", "history_assistant_lengths", "num_tokens")
"""Fields that only count what stands in others."""


class BatchView:
    """Rows of one record batch (at least one row, columns of CONTENT_SCHEMA, with or without xxh3).

    Holds the batch's buffers alive; nothing is copied.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        """The columns must have passed `schema_problem`."""
        self._batch = batch

    def __len__(self) -> int:
        return self._batch.num_rows

    def fields(self, i: int) -> Fields:
        """Row i as byte views in the order of `schema.FIELDS`."""
        places = zip(self.data, self.starts_RF[i].tolist(), self.lengths_RF[i].tolist(), strict=True)
        return [None if length < 0 else data[start : start + length] for data, start, length in places]

    def row(self, i: int) -> tuple[Fields, int]:
        """Row i's fields and the xxh3 stored with it."""
        return self.fields(i), int(self.stored[i])

    @property
    def stored(self) -> np.ndarray:
        """The hash stored with each row, uint64 (rows,)."""
        return np.frombuffer(_fixed(self._batch.column("xxh3")), np.uint64)

    @property
    def data(self) -> list[memoryview]:
        """For each field the bytes that its rows are slices of."""
        return [data for _, data in self._columns]

    @cached_property
    def starts_RF(self) -> np.ndarray:
        """Where each row's bytes of each field begin in `data`, int64."""
        return np.stack([offsets[:-1] for offsets, _ in self._columns], axis=1)

    @cached_property
    def lengths_RF(self) -> np.ndarray:
        """How many bytes they are, int64, −1 for null."""
        lengths_RF = np.stack([np.diff(offsets) for offsets, _ in self._columns], axis=1)
        for name in ("image_sha256", "image_tokens", "image"):
            lengths_RF[_nulls(self._batch.column(name)), PLACE[name]] = -1
        return lengths_RF

    @cached_property
    def _columns(self) -> list[tuple[np.ndarray, memoryview]]:
        """For each field the offsets of its rows, in bytes, and the bytes."""
        batch = self._batch
        columns = {name: _texts(batch.column(name)) for name in (*TEXT_FIELDS, "image")}
        turns, *sides = _list_of_pairs(batch.column("history"))
        for side, texts in zip(("user", "assistant"), sides, strict=True):
            offsets, data = _texts(texts)
            lengths = np.diff(offsets).astype(np.int32).tobytes()
            columns[f"history_{side}_lengths"] = 4 * turns, memoryview(lengths)
            columns[f"history_{side}"] = np.take(offsets, turns, mode="clip"), data
        ids, values = _list(batch.column("input_ids"))
        columns["input_ids"] = 4 * ids, _fixed(values)
        spans, starts, ends = _list_of_pairs(batch.column("supervised"))
        columns["span_starts"], columns["span_ends"] = (4 * spans, _fixed(starts)), (4 * spans, _fixed(ends))
        columns["num_tokens"] = 4 * np.arange(len(self) + 1), _fixed(batch.column("num_tokens"))
        codes, values = _list(batch.column("image_tokens"))
        columns["image_tokens"] = 2 * codes, _fixed(values)
        return [columns[name] for name in FIELDS]

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens per row, int32 (rows,), a view."""
        return np.frombuffer(_fixed(self._batch.column("num_tokens")), np.int32, len(self))

    @property
    def supervised_tokens(self) -> np.ndarray:
        """Supervised tokens per row, int32 (rows,)."""
        spans, starts, ends = _list_of_pairs(self._batch.column("supervised"))
        lengths = np.frombuffer(_fixed(ends), np.int32) - np.frombuffer(_fixed(starts), np.int32)
        return np.diff(np.concatenate([[0], np.cumsum(lengths)])[spans]).astype(np.int32)

    @property
    def row_bytes(self) -> np.ndarray:
        """Bytes of text, ids and image per row, int64 (rows,)."""
        content = [place for name, place in PLACE.items() if name not in _DERIVED]
        return np.maximum(self.lengths_RF[:, content], 0).sum(1)

    def column(self, name: str) -> pa.Array:
        """One Arrow column, checked to be sound before anything walks it."""
        column = self._batch.column(name)
        column.validate(full=True)
        return column


def schema_problem(found: pa.Schema, expected: pa.Schema) -> str | None:
    """The first expected column that is missing or of another type, in words; None if there is none."""
    for field in expected:
        kind = found.field(field.name).type if field.name in found.names else "missing"
        if kind != field.type:
            return f"column {field.name} is {kind}, expected {field.type}"
    return None


def _texts(column: pa.Array) -> tuple[np.ndarray, memoryview]:
    """Offsets and bytes of a string or binary column."""
    _, offsets, data = column.buffers()
    width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    return _offsets(column, offsets, width), _bytes(data)


def _list(column: pa.ListArray) -> tuple[np.ndarray, pa.Array]:
    """Offsets and values of a list column."""
    return _offsets(column, column.buffers()[1], np.int32), column.values


def _list_of_pairs(column: pa.ListArray) -> tuple[np.ndarray, pa.Array, pa.Array]:
    """Offsets and the two child columns of a list of two-field structs."""
    offsets, values = _list(column)
    return offsets, values.field(0), values.field(1)


def _offsets(column: pa.Array, buffer: pa.Buffer | None, width: type[np.generic]) -> np.ndarray:
    """Offsets of the column's rows, int64 (rows + 1,)."""
    if buffer is None:  # Arrow leaves the buffer out of a column without values
        return np.zeros(len(column) + 1, np.int64)
    return np.frombuffer(buffer, width)[column.offset :][: len(column) + 1].astype(np.int64)


def _fixed(column: pa.Array) -> memoryview:
    """Bytes of a fixed-width column from its first row on."""
    width = column.type.bit_width // 8
    return _bytes(column.buffers()[-1])[width * column.offset : width * (column.offset + len(column))]


def _bytes(buffer: pa.Buffer | None) -> memoryview:
    return _EMPTY if buffer is None else memoryview(buffer).cast("B")


def _nulls(column: pa.Array) -> np.ndarray:
    """Which rows are null, bool (rows,)."""
    bitmap = column.buffers()[0]
    if bitmap is None:
        return np.zeros(len(column), bool)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return bits[column.offset :][: len(column)] == 0
