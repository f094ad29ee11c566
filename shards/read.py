"""Read a folder of shards in any order, without copying; nothing damaged passes in silence.

`ShardSet.open` names what is missing, extra, truncated or of another schema before the first row is
read. `TaskRows.read` checks the row's content hash each time, so damage inside a file of the right
size is named by shard, row and sample. `verify_folder` finds all of it at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from janus.common.errors import UserError
from janus.common.files import hash_file
from shards.block import BlockReader, RowBlock
from shards.columns import BatchView, schema_problem
from shards.manifest import (
    Manifest,
    ShardEntry,
    check_folder,
    folder_problems,
    load_manifest,
)
from shards.schema import SCHEMA, Fields, Sample, content_hash, sample_from_fields, turns_of
from shards.tar import TarRows


class Rows(Protocol):
    """A run of rows in either format: a record batch, or a whole tar file."""

    def __len__(self) -> int: ...

    def row(self, i: int) -> tuple[Fields, int]:
        """Row i's fields and the xxh3 stored with it. A damaged row may raise anything."""

    @property
    def num_tokens(self) -> np.ndarray: ...

    @property
    def supervised_tokens(self) -> np.ndarray: ...

    @property
    def row_bytes(self) -> np.ndarray: ...

    def column(self, name: str) -> pa.Array: ...


class ShardSet:
    """A folder of shards whose names, sizes, schema and footers have been found in order."""

    def __init__(
        self, folder: Path, manifest: Manifest, shards: dict[str, list[Rows]], edited: bool = False
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._shards = shards
        self._edited = edited

    @classmethod
    def open(cls, folder: str | Path, edited: bool = False) -> ShardSet:
        """Open and check; raises UserError naming each shard that is not as the manifest says.

        edited: take names from the manifest and all else as it is found, and read rows whatever their hash.
        """
        folder = Path(folder)
        manifest = load_manifest(folder)
        if not edited:
            check_folder(folder, manifest)
        shards = {entry.path: _open_shard(folder, entry, edited) for entry in manifest.shards}
        return cls(folder, manifest, shards, edited)

    def splits_tasks(self) -> list[tuple[str, str]]:
        """The (split, task) pairs that have rows, sorted."""
        return sorted({(entry.split, entry.task) for entry in self.manifest.shards})

    def rows(self, split: str, task: str) -> TaskRows:
        """All rows of one task in one split, shard after shard. UserError if there are none."""
        entries = [e for e in self.manifest.shards if (e.split, e.task) == (split, task)]
        if not entries:
            there = ", ".join("/".join(pair) for pair in self.splits_tasks())
            raise UserError(f"{self.folder}: no {split}/{task} rows; there are {there}")
        shards = {e.path: self._shards[e.path] for e in entries}
        return TaskRows(self.folder, shards, self.manifest.image_size, self._edited)

    def verify(self, workers: int = 2) -> list[str]:
        """Hash every file and row again; one line per difference."""
        return verify_folder(self.folder, workers)


class TaskRows:
    """Rows of one task and split, by index. Columns are read without touching texts or images."""

    def __init__(
        self, folder: Path, shards: dict[str, list[Rows]], image_size: int, edited: bool = False
    ) -> None:
        """edited: read rows whose content is not what their hash says."""
        self._folder = folder
        self._edited = edited
        self._image_size = image_size
        self._runs = [run for runs in shards.values() for run in runs]
        self._starts = [0, *accumulate(len(run) for run in self._runs)]
        self._shard_starts = [0, *accumulate(sum(map(len, runs)) for runs in shards.values())]
        self._paths = list(shards)

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> Sample:
        """Sample `index`, its content hash checked. UserError naming shard, row and sample if damaged."""
        return sample_from_fields(self.fields(index), self._image_size)

    def fields(self, index: int) -> Fields:
        """The fields of row `index` as they lie in the shard, its content hash checked; raises as `read`."""
        if not 0 <= index < self._starts[-1]:
            raise IndexError(f"row {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        try:
            row, stored = self._runs[number].row(index - self._starts[number])
            if self._edited or content_hash(row) == stored:
                return row
            who = f" (sample {str(row[0], 'utf-8', 'replace')})"
        except Exception as error:
            # Damaged bytes can fail anywhere: as JSON, as an offset, as UTF-8. All mean one thing.
            who = f" ({error!r})"
        shard = bisect_right(self._shard_starts, index) - 1
        raise UserError(
            f"{self._folder / self._paths[shard]}: row {index - self._shard_starts[shard]}{who} "
            "is damaged: its content does not match its xxh3; build the shards again"
        )

    def block(self, indices: np.ndarray) -> RowBlock:
        """The fields of many rows (int64, at least one), checked and raising as `fields`."""
        if self._blocks and not self._edited:
            block = self._blocks.block(indices)
            if self._blocks.is_whole(block, indices):
                return block
        return RowBlock.of([self.fields(index) for index in indices.tolist()])  # names the damaged one

    @cached_property
    def _blocks(self) -> BlockReader | None:
        """None where rows are not in record batches."""
        views = [run for run in self._runs if isinstance(run, BatchView)]
        return BlockReader(views) if len(views) == len(self._runs) else None

    def contents(self) -> Iterator[tuple[str, str | None, list[str]]]:
        """(sample_id, image_sha256, user turns) of every row in order; pictures are not touched."""
        for run in self._runs:
            for i in range(len(run)):
                sample_id, image_sha256, prompt, turns = itemgetter(0, 6, 7, slice(9, 13))(run.row(i)[0])
                users = [user for user, _ in turns_of(turns)] if turns[0] else []
                sha256 = None if image_sha256 is None else str(image_sha256, "utf-8")
                yield str(sample_id, "utf-8"), sha256, [*users, str(prompt, "utf-8")]

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Tokens per row, int32 (rows,)."""
        return self._gather("num_tokens", lambda run: run.num_tokens)

    @cached_property
    def supervised_tokens(self) -> np.ndarray:
        """Supervised tokens per row, int32 (rows,)."""
        return self._gather("supervised", lambda run: run.supervised_tokens)

    @cached_property
    def row_bytes(self) -> np.ndarray:
        """Bytes of content per row, int64 (rows,)."""
        return self._gather("row sizes", lambda run: run.row_bytes)

    @cached_property
    def sample_ids(self) -> pa.ChunkedArray:
        """Sample ids, string (rows,)."""
        return pa.chunked_array(self._each("sample_id", lambda run: run.column("sample_id")), pa.string())

    @cached_property
    def sources(self) -> pa.ChunkedArray:
        """Source names, string (rows,)."""
        return pa.chunked_array(self._each("source", lambda run: run.column("source")), pa.string())

    @cached_property
    def answers(self) -> pa.ChunkedArray:
        """Answers, string (rows,)."""
        return pa.chunked_array(self._each("answer", lambda run: run.column("answer")), pa.string())

    def _gather(self, what: str, get: Callable[[Rows], np.ndarray]) -> np.ndarray:
        return np.concatenate(list(self._each(what, get)))

    def _each(self, what: str, get: Callable[[Rows], object]) -> list:
        """`get` of every run; UserError naming the shard where the bytes make no sense."""
        values = []
        for run, start in zip(self._runs, self._starts, strict=False):
            try:
                values.append(get(run))
            except Exception as error:
                path = self._folder / self._paths[bisect_right(self._shard_starts, start) - 1]
                raise UserError(
                    f"{path}: {what} cannot be read ({error!r}); build the shards again"
                ) from None
        return values


def verify_folder(folder: Path, workers: int = 2) -> list[str]:
    """Hash every file and every row again: one line for each that differs, none if all is as written.

    Raises UserError only if there is no readable manifest to compare with.
    """
    manifest = load_manifest(folder)
    problems = folder_problems(folder, manifest)
    named = {problem.partition(":")[0] for problem in problems}
    whole = [entry for entry in manifest.shards if entry.path not in named]
    with ThreadPoolExecutor(workers) as pool:  # hashing lets other threads run
        for found in pool.map(lambda entry: _shard_problems(folder, entry), whole):
            problems += found
    return problems


def _open_shard(folder: Path, entry: ShardEntry, edited: bool = False) -> list[Rows]:
    """The shard memory-mapped. Raises UserError naming it if it is not what its entry says.

    edited: it may hold another number of rows.
    """
    path = folder / entry.path
    runs: list[Rows]
    if path.suffix == ".tar":
        runs = [TarRows(path)]
    else:
        try:
            file = pa.ipc.open_file(pa.memory_map(str(path)))
            if problem := schema_problem(file.schema, SCHEMA):
                raise UserError(f"{path}: {problem}; build the shards again")
            batches = [file.get_batch(i) for i in range(file.num_record_batches)]
            for batch in batches:
                batch.validate()  # Arrow aborts the process on lengths that damage made absurd
            runs = [BatchView(batch) for batch in batches]
        except (pa.ArrowException, OSError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a readable Arrow file ({error}); build the shards again") from None
    rows = sum(len(run) for run in runs)
    if rows != entry.rows and not edited:
        raise UserError(f"{path}: {rows} rows, the manifest says {entry.rows}; build the shards again")
    return runs


def _shard_problems(folder: Path, entry: ShardEntry) -> list[str]:
    """What differs in one shard of the right size: the file's hash, then the rows it lies in."""
    problems = []
    if hash_file(folder / entry.path) != entry.sha256:
        problems.append(f"{entry.path}: sha256 differs from the manifest")
    try:
        runs = _open_shard(folder, entry)
    except UserError as error:
        return [*problems, error.message.replace(str(folder / entry.path), entry.path)]
    number = tokens = 0
    for run in runs:
        for i in range(len(run)):
            problem, found = _row_problem(run, i, entry)
            if problem:
                problems.append(f"{entry.path}: row {number} {problem}")
            number, tokens = number + 1, tokens + found
    if tokens != entry.tokens and not problems:
        problems.append(f"{entry.path}: {tokens} tokens, the manifest says {entry.tokens}")
    return problems


def _row_problem(run: Rows, i: int, entry: ShardEntry) -> tuple[str | None, int]:
    """What is wrong with a row, if anything, and its tokens."""
    try:
        row, stored = run.row(i)
        sample_id, task, _, split = (str(field, "utf-8", "replace") for field in row[:4])
        if content_hash(row) != stored:
            return f"({sample_id}): content does not match its xxh3", 0
        if (split, task) != (entry.split, entry.task):
            return f"({sample_id}): is {split}/{task}", 0
        return None, len(row[13]) // 4
    except Exception as error:
        return f"cannot be read ({error!r})", 0
