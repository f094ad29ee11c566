"""Many rows at once, field by field: what numpy checks and places without an object per value.

Slicing a field out of the shard costs about 130 ns, whatever its size, and a row has 19. So where they lie is
worked out for a whole block by arithmetic, and only those that hold bytes are sliced.
"""

# Shapes: R rows of a block, N rows of all runs, F fields.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from shards.columns import BatchView, schema_problem
from shards.schema import CONTENT_SCHEMA, FIELDS, PLACE, Fields, hash_of


@dataclass(frozen=True)
class RowBlock:
    """Rows side by side. columns: per entry of FIELDS each row's bytes, empty for null.

    lengths_RF: how many bytes, int64, −1 for null.
    """

    columns: list[Sequence[Any]]
    lengths_RF: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Fields]) -> RowBlock:
        """At least one row, whatever holds it."""
        lengths = [[-1 if field is None else len(field) for field in row] for row in rows]
        columns: list[Sequence[Any]] = [
            [b"" if field is None else field for field in column] for column in zip(*rows, strict=True)
        ]
        return cls(columns, np.array(lengths, np.int64))

    def __len__(self) -> int:
        return len(self.lengths_RF)

    def row(self, i: int) -> Fields:
        """Row i's fields, None for null."""
        there = (self.lengths_RF[i] >= 0).tolist()
        return [column[i] if known else None for column, known in zip(self.columns, there, strict=True)]

    def column(self, name: str) -> Sequence[Any]:
        """Every row's bytes of a field, empty for null."""
        return self.columns[PLACE[name]]

    def lengths(self, name: str) -> np.ndarray:
        """Bytes of a field in each row, int64 (rows,), −1 for null."""
        return self.lengths_RF[:, PLACE[name]]

    def numbers(self, name: str, kind: type[np.generic]) -> np.ndarray:
        """The numbers of a field, one row's behind the other's."""
        return np.frombuffer(b"".join(self.column(name)), kind)

    def replaced(self, name: str, values: Mapping[int, bytes]) -> RowBlock:
        """The block with other bytes in a field of some rows."""
        columns, lengths_RF = list(self.columns), self.lengths_RF.copy()
        column = columns[PLACE[name]] = list(self.column(name))
        for row, value in values.items():
            column[row], lengths_RF[row, PLACE[name]] = value, len(value)
        return replace(self, columns=columns, lengths_RF=lengths_RF)

    def hashes(self) -> list[int]:
        """The content hash of each row (`content_hash`)."""
        lengths = np.ascontiguousarray(self.lengths_RF).view(f"V{8 * len(FIELDS)}")[:, 0].tolist()
        small = map(b"".join, zip(lengths, *self.columns[:-1], strict=True))
        return list(map(hash_of, small, self.columns[-1]))


class BlockReader:
    """Rows of many record batches, any of them as one block."""

    def __init__(self, runs: Sequence[BatchView]) -> None:
        """Note where each field of each row lies: 228 bytes a row, and no content."""
        self._firsts = list(accumulate((len(run) for run in runs[:-1]), initial=0))
        self._data = list(zip(*(run.data for run in runs), strict=True))
        self._starts_NF = np.concatenate([run.starts_RF for run in runs])
        self._lengths_NF = np.concatenate([run.lengths_RF.astype(np.int32) for run in runs])
        self._runs = runs

    def block(self, indices_R: np.ndarray) -> RowBlock:
        """The rows of these indices (int64), unchecked."""
        starts_RF = np.take(self._starts_NF, indices_R, axis=0)
        lengths_RF = np.take(self._lengths_NF, indices_R, axis=0).astype(np.int64)
        ends_RF = starts_RF + np.maximum(lengths_RF, 0)
        runs = (np.searchsorted(self._firsts, indices_R, "right") - 1).tolist()
        columns: list[Sequence[Any]] = [[b""] * len(runs)] * len(FIELDS)
        for place in np.flatnonzero((lengths_RF > 0).any(0)).tolist():
            data, starts, ends = self._data[place], starts_RF[:, place].tolist(), ends_RF[:, place].tolist()
            columns[place] = [data[run][lo:hi] for run, lo, hi in zip(runs, starts, ends, strict=True)]
        return RowBlock(columns, lengths_RF)

    @cached_property
    def _stored_N(self) -> np.ndarray:
        return np.concatenate([run.stored for run in self._runs])

    def is_whole(self, block: RowBlock, indices_R: np.ndarray) -> bool:
        """Whether the content of every row is what the hash stored with it says."""
        return block.hashes() == self._stored_N[indices_R].tolist()


def row_hashes(rows: pa.RecordBatch | pa.Table) -> np.ndarray:
    """The content hash of every row, uint64 (rows,): of all columns but xxh3 itself.

    Raises ValueError if a column is missing or of another type.
    """
    if problem := schema_problem(rows.schema, CONTENT_SCHEMA):
        raise ValueError(problem)
    batches = rows.to_batches() if isinstance(rows, pa.Table) else [rows]
    views = [BatchView(batch) for batch in batches if batch.num_rows]
    hashes = BlockReader(views).block(np.arange(rows.num_rows)).hashes() if views else []
    return np.array(hashes, np.uint64)
