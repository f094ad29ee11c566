"""Chunks over worker processes; results keep the order of the chunks, whatever the number of workers.

Workers start fresh (forkserver or spawn), never forked from a process with threads. Even a single worker is a
separate process: a row that kills the process that reads it must not kill the build.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import click
import pyarrow as pa

from janus.common.errors import UserError
from pipelines.tables import open_table, part_name

Result = TypeVar("Result")

AHEAD = 4
"""Chunks submitted per worker before the first result is awaited; bounds memory."""

KILLED = ("kills_worker", "a worker process died on it, twice")
"""Reason to reject a row on which a worker process died, twice: the second time on that row only."""

SAFE_PATH = "PYTHONSAFEPATH"
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"

_DEATHS = (BrokenProcessPool, MemoryError)


@dataclass(frozen=True)
class Chunk:
    """One unit of work: a record batch of a table to read, and the file to write."""

    table: Path
    batch: int
    out: Path
    skip: frozenset[int] = frozenset()  # rows to reject unread, as KILLED

    def read(self) -> pa.RecordBatch:
        """The batch, including the skipped rows."""
        return open_table(self.table).get_batch(self.batch)

    def names(self) -> list[str]:
        """Each row's name in errors. A picture goes by its sha256; `rejects.arrow` lists its rows."""
        batch = self.read()
        if "source_key" not in batch.schema.names:
            return [f"picture {sha256}" for sha256 in batch["image_sha256"].to_pylist()]
        return [f"row {row['source']}/{row['source_key']}" for row in batch.to_pylist()]

    def __str__(self) -> str:
        return f"batch {self.batch} of {self.table}"


def chunks_of(table: Path, folder: Path, name: str) -> list[Chunk]:
    """A chunk for each record batch of a table, writing `<name>-<batch>.arrow` in `folder`."""
    batches = range(open_table(table).num_record_batches)
    return [Chunk(table, batch, folder / part_name(name, batch)) for batch in batches]


def start_forkserver(modules: Sequence[str]) -> None:
    """Let the process that workers fork from import `modules` while this one does its own imports."""
    if METHOD == "forkserver":
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload(list(modules))
        _ensure_forkserver()


def _ensure_forkserver() -> None:
    """Start the process that workers fork from, if there is none, without the working folder on its path.

    A folder `shards` of data there would be taken for the package where that is installed as editable.
    """
    from multiprocessing import forkserver

    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before


def map_chunks(work: Callable[[Chunk], Result], chunks: Sequence[Chunk], workers: int) -> Iterator[Result]:
    """`work(chunk)` for every chunk, in order. work is pickled: a module's function, or a partial of one.

    If a worker dies (killed, crashed or out of memory), the chunks in flight are repeated one at a time, and
    a row that kills by itself is skipped. Raises UserError naming a chunk that kills although none of its
    rows does.
    """
    if METHOD == "forkserver":
        _ensure_forkserver()
    left = deque(chunks)
    while left:
        try:
            for result in _pooled(work, list(left), min(workers, len(left))):
                left.popleft()
                yield result
        except _DEATHS:
            # The pool does not say which chunk it was.
            for _ in range(min(len(left), workers * AHEAD + 1)):
                yield _rescued(work, left.popleft())


def _pooled(work: Callable[[Chunk], Result], chunks: Sequence[Chunk], workers: int) -> Iterator[Result]:
    with _executor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(work, chunk))
                if len(waiting) > workers * AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _rescued(work: Callable[[Chunk], Result], chunk: Chunk) -> Result:
    """The chunk's result without the rows that kill; halving finds them."""

    def attempt(rows: Sequence[int]) -> tuple[Result] | None:
        """The result for these rows from a separate process; None if that dies."""
        try:
            with _executor(1) as pool:
                skip = frozenset(range(len(names))) - frozenset(rows)
                return (pool.submit(work, replace(chunk, skip=skip)).result(),)
        except _DEATHS:
            return None

    def killers(rows: Sequence[int]) -> list[int]:
        """The rows on which a process dies, once it has died on all of `rows`."""
        if len(rows) == 1:
            return list(rows)
        halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        return [row for half in halves if not attempt(half) for row in killers(half)]

    names = chunk.names()
    rows = range(len(names))
    if result := attempt(rows):
        return result[0]
    found = [row for row in killers(rows) if not attempt([row])]
    for row in found:
        died = f"a worker process died on {names[row]}, and again on that row by itself; it is rejected"
        click.echo(f"WARNING: {chunk}: {died}", err=True)
    if result := attempt([row for row in rows if row not in found]):
        return result[0]
    raise UserError(
        f"{chunk}: a worker process dies on it, but on none of its rows by itself; out of memory? make room "
        "and run again: finished stages are kept"
    )


def _start_worker() -> None:
    """One thread per process: the pool is the parallelism. The parent handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def die_with_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    # Otherwise a worker would outlive a killed parent, and write into what the next run is making.
    threading.Thread(target=die_with_parent, daemon=True).start()


_executor = partial(
    ProcessPoolExecutor, mp_context=multiprocessing.get_context(METHOD), initializer=_start_worker
)
