"""Read a folder of shards in any order, without copying; nothing damaged passes in silence.

`ShardSet.open` names what is missing, extra, truncated or of another schema before the first row is
read. `TaskRows` checks each row's content hash whenever it is read, so damage inside a file of the right
size is named by shard, row and sample. `compare/check.py` finds all of it at once.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from janus.common.errors import UserError
from janus.common.options import nearest
from shards.manifest import REBUILD, Manifest, PictureEntry, ShardEntry, folder_problems, load_manifest
from shards.pictures import DRAWN, FOLDER, UNDERSTOOD, PictureFile, Pictures, read_arrow
from shards.rows import ArrowRows, RowBytes, schema_problem
from shards.schema import CONTENT_SCHEMA, SCHEMA, RowBlock, Sample
from shards.tar import TarRows, read_members, read_tar_pictures

CHUNK = 256
"""Rows that are read at a time where all of them are."""

Rows = ArrowRows | TarRows
"""The rows of some shards of one format. `rows` checks nothing: a damaged one may raise anything."""


@dataclass(frozen=True)
class ShardSet:
    """A folder of shards whose names, sizes, schema and footers are as its manifest says.

    pictures: prepared ones by kind, UNDERSTOOD and DRAWN.
    """

    folder: Path
    manifest: Manifest
    shards: Mapping[str, Rows]
    pictures: Mapping[str, Pictures]

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open and check; raises UserError naming each shard that is not as the manifest says."""
        folder = Path(folder)
        manifest = load_manifest(folder)
        if problems := folder_problems(folder, manifest):
            raise UserError(f"{folder}: {'; '.join(problems)}; {REBUILD}")
        files = {entry.path: open_pictures(folder, entry) for entry in manifest.pictures}
        codec, size = manifest.preprocessing["pixels"], manifest.image_size
        pictures = {
            kind: Pictures(
                [f for path, f in files.items() if path.startswith(f"{FOLDER}/{kind}-")], codec, size
            )
            for kind in (UNDERSTOOD, DRAWN)
        }
        shards = {entry.path: open_shard(folder, entry) for entry in manifest.shards}
        return cls(folder, manifest, shards, pictures)

    def splits_tasks(self) -> list[tuple[str, str]]:
        """The (split, task) pairs that have rows, sorted."""
        return sorted({(entry.split, entry.task) for entry in self.manifest.shards})

    def rows(self, split: str, task: str) -> "TaskRows":
        """All rows of one task in one split, shard after shard. UserError if there are none."""
        entries = [e for e in self.manifest.shards if (e.split, e.task) == (split, task)]
        if not entries:
            found = ", ".join("/".join(pair) for pair in self.splits_tasks())
            raise UserError(f"{self.folder}: no {split}/{task} rows; there are {found}")
        shards = {self.folder / e.path: self.shards[e.path] for e in entries}
        return TaskRows(shards, self.pictures[UNDERSTOOD])

    def find(self, sample_id: str) -> Sample:
        """The sample with that id. Raises UserError with the nearest id if there is none."""
        ids: list[str] = []
        for split, task in self.splits_tasks():
            rows = self.rows(split, task)
            found = rows.column("sample_id").to_pylist()
            if sample_id in found:
                return rows.read(found.index(sample_id))
            ids += found
        near = nearest(sample_id, ids)
        hint = f"did you mean {near!r}?" if near else f"ids look like {ids[0]!r}"
        raise UserError(f"{self.folder}: no sample {sample_id!r}; {hint}")


class TaskRows:
    """Rows of one task and split, by index. Columns are read without touching any other."""

    def __init__(self, shards: Mapping[Path, Rows], pictures: Pictures) -> None:
        """shards: of one format, in order, by the path that errors name. pictures: that the rows read."""
        self._shards, self._pictures = shards, pictures
        self._starts = [0, *accumulate(len(rows) for rows in shards.values())]
        parts: list[Any] = [part for rows in shards.values() for part in rows.parts]
        self._rows: Rows = type(next(iter(shards.values())))(parts)

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> Sample:
        """Sample `index`, its content hash checked. UserError naming shard, row and sample if damaged."""
        return self._checked(np.array([index])).sample(0, self._pictures)

    def block(self, indices: np.ndarray) -> RowBlock:
        """The rows of these indices (int64, at least one), checked and raising as `read`."""
        return self._checked(indices).block(self._pictures)

    def unchecked(self) -> Iterator[Sample]:
        """Every sample in order, its hash not checked, without its pictures."""
        for start in range(0, len(self), CHUNK):
            rows = self._rows.rows(np.arange(start, min(start + CHUNK, len(self))))
            yield from (rows.sample(i, None) for i in range(len(rows.lengths_RF)))

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of `CONTENT_SCHEMA`, its content unchecked. UserError naming a shard that is unsound."""
        chunks = chain.from_iterable(self._each(name, lambda rows: rows.column(name)))
        return pa.chunked_array(list(chunks), CONTENT_SCHEMA.field(name).type)

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each row, int32."""
        return self.column("num_tokens").to_numpy()

    @cached_property
    def supervised_tokens(self) -> np.ndarray:
        """Supervised tokens of each row, int32."""
        spans = self.column("supervised").combine_chunks()
        lengths = np.subtract(spans.values.field("end"), spans.values.field("start"))
        return np.diff(np.append(0, np.cumsum(lengths))[spans.offsets]).astype(np.int32)

    @cached_property
    def image_tokens(self) -> np.ndarray:
        """Tokens of the pictures that each row draws, int64; all of them are supervised."""
        return np.diff(self.column("image_tokens").combine_chunks().offsets).astype(np.int64)

    @cached_property
    def understood(self) -> np.ndarray:
        """Pictures that each row reads, int64."""
        return self._shown_by("user")

    @cached_property
    def drawn(self) -> np.ndarray:
        """Pictures that each row draws, int64."""
        return self._shown_by("assistant")

    def _shown_by(self, role: str) -> np.ndarray:
        messages = self.column("messages").combine_chunks()
        pictures = np.diff(messages.values.field("pictures").offsets)
        shown = pictures * pc.equal(messages.values.field("role"), role).to_numpy(zero_copy_only=False)
        return np.diff(np.append(0, np.cumsum(shown, dtype=np.int64))[messages.offsets])

    def row_bytes(self) -> np.ndarray:
        """Bytes of content of each row, int64."""
        return np.concatenate(self._each("row sizes", lambda rows: rows.row_bytes()))

    def _each(self, what: str, get: Callable[[Rows], Any]) -> list[Any]:
        """`get` of every shard; UserError naming the one whose bytes make no sense."""
        values = []
        for path, rows in self._shards.items():
            try:
                values.append(get(rows))
            except Exception as error:
                raise UserError(
                    f"{path}: {what} cannot be read ({error!r}); build the shards again"
                ) from None
        return values

    def _checked(self, indices: np.ndarray) -> RowBytes:
        if not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"rows {indices.min()} to {indices.max()} of {len(self)}")
        try:
            rows = self._rows.rows(indices)
            if rows.hashes() == self._rows.stored_hashes(indices):
                return rows
        except Exception:  # damaged bytes can fail anywhere: as JSON, as an offset, as UTF-8
            pass
        raise UserError(self._damage(indices))

    def _damage(self, indices: np.ndarray) -> str:
        """Which of these rows is the first damaged one, in words."""
        for index in indices.tolist():
            shard = bisect_right(self._starts, index) - 1
            path, row = list(self._shards)[shard], index - self._starts[shard]
            if problem := row_problem(self._shards[path], row):
                return f"{path}: row {row} {problem}; build the shards again"
        self._each("rows", lambda rows: rows.rows(np.arange(1)))
        raise AssertionError("whole rows of whole shards were taken for damaged")


def row_problem(rows: Rows, index: int) -> str | None:
    """What is wrong with a row, if anything, and the name of its sample."""
    try:
        row = rows.rows(np.array([index]))
        if row.hashes() == rows.stored_hashes(np.array([index])):
            return None
        return f"({str(row.columns[0][0], 'utf-8', 'replace')}): content does not match its xxh3"
    except Exception as error:
        return f"cannot be read ({error!r})"


def open_shard(folder: Path, entry: ShardEntry) -> Rows:
    """The shard memory-mapped. Raises UserError naming it if it is not what its entry says."""
    path = folder / entry.path
    rows: Rows = TarRows(read_members(path)) if path.suffix == ".tar" else ArrowRows(read_batches(path))
    if len(rows) != entry.rows:
        raise UserError(f"{path}: {len(rows)} rows, the manifest says {entry.rows}; build the shards again")
    return rows


def open_pictures(folder: Path, entry: PictureEntry) -> PictureFile:
    """A file of pictures, mapped. Raises UserError naming it if it is not what its entry says."""
    file = read_pictures(folder / entry.path)
    if (found := len(file.names)) != entry.pictures:
        raise UserError(f"{file.path}: {found} pictures, the manifest says {entry.pictures}; {REBUILD}")
    return file


def read_pictures(path: Path) -> PictureFile:
    """A file of pictures in either format, mapped. Raises UserError if it is not one."""
    try:
        return read_tar_pictures(path) if path.suffix == ".tar" else read_arrow(path)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise UserError(f"{path}: not readable pictures ({error!r}); build the shards again") from None


def read_batches(path: Path) -> list[pa.RecordBatch]:
    """The record batches of an Arrow shard, memory-mapped. Raises UserError if it is not one of SCHEMA."""
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        if problem := schema_problem(file.schema, SCHEMA):
            raise UserError(f"{path}: {problem}; build the shards again")
        batches = [file.get_batch(i) for i in range(file.num_record_batches)]
        for batch in batches:
            batch.validate()  # Arrow aborts the process on lengths that damage made absurd
    except (pa.ArrowException, OSError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a readable Arrow file ({error}); build the shards again") from None
    return batches
