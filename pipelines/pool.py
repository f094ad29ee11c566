"""Chunks over worker processes, results in the chunks' own order whatever the number of workers.

Workers are started afresh (forkserver or spawn), never forked from a process that has threads. Even a single
one is a process of its own: a row may kill the process that reads it, and must not take the build along.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Protocol, TypeVar

import click

from janus.common.errors import UserError


class Rows(Protocol):
    """A frozen dataclass that says which rows to work on."""

    @property
    def skip(self) -> frozenset[int]:
        """Rows that are not to be touched, but set aside as KILLS_WORKER."""

    def names(self) -> list[str]:
        """What each row is called."""


Chunk = TypeVar("Chunk", bound=Rows)
Result = TypeVar("Result")

AHEAD = 4
"""Chunks given out per worker before the first result is awaited; bounds memory."""

KILLS_WORKER = "kills_worker"
"""Reason of a row on which a worker process died, and again when it was tried alone."""

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"

_DEATHS = (BrokenProcessPool, MemoryError)


def start_forkserver(modules: Sequence[str]) -> None:
    """Let the process that workers are forked from import `modules` while this one does its own imports."""
    if METHOD == "forkserver":
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload(list(modules))
        forkserver.ensure_running()


def map_chunks(work: Callable[[Chunk], Result], chunks: Sequence[Chunk], workers: int) -> Iterator[Result]:
    """`work(chunk)` for every chunk, in order. work must be a module's function; chunks are pickled.

    If a worker dies (killed, crashed or out of memory), the chunks that were given out are done again one
    at a time, and a row that kills alone as well is left out of its chunk. Raises UserError naming the chunk
    if it kills without any of its rows doing so.
    """
    left = deque(chunks)
    while left:
        try:
            for result in _pooled(work, list(left), min(workers, len(left))):
                left.popleft()
                yield result
        except _DEATHS:
            # Which of them it was the pool does not say.
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
    """The chunk's result without the rows that kill, each found by halving and tried alone."""
    if result := _alone(work, chunk):
        return result[0]
    names = chunk.names()
    rows = frozenset(range(len(names)))

    def survives(some: frozenset[int]) -> bool:
        return bool(_alone(work, replace(chunk, skip=rows - some)))  # type: ignore[type-var]

    killers = _killers(survives, sorted(rows))
    for row in killers:
        click.echo(
            f"WARNING: {chunk}: a worker process died on {names[row]}, and again when it was tried alone; "
            "it is set aside",
            err=True,
        )
    if result := _alone(work, replace(chunk, skip=frozenset(killers))):  # type: ignore[type-var]
        return result[0]
    raise UserError(
        f"{chunk}: a worker process dies on it, but on none of its rows alone; out of memory? make room and "
        "run again: finished stages are kept"
    )


def _killers(survives: Callable[[frozenset[int]], bool], rows: list[int]) -> list[int]:
    """The rows on which a process dies, known to be among `rows` if it dies on one at all."""
    if len(rows) == 1:
        return [] if survives(frozenset(rows)) else rows
    halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    return [row for half in halves if not survives(frozenset(half)) for row in _killers(survives, half)]


def _alone(work: Callable[[Chunk], Result], chunk: Chunk) -> tuple[Result] | None:
    """The result out of a process of its own, None if that dies."""
    try:
        with _executor(1) as pool:
            return (pool.submit(work, chunk).result(),)
    except _DEATHS:
        return None


def _executor(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context(METHOD)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    """One thread per process: the pool is the parallelism. Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Else a worker would outlive a parent that was killed, and write into what the next run is making.
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
