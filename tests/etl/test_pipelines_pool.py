"""Chunks over processes: in order, and a row on which its worker dies is found, named and left out."""

from __future__ import annotations

import os
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from janus.common.errors import UserError
from pipelines.pool import map_chunks


@dataclass(frozen=True)
class Chunk:
    """Some numbers; `deadly` ones kill, `once` only where it is not there yet."""

    numbers: tuple[int, ...]
    how: str = ""
    deadly: frozenset[int] = frozenset()
    once: Path | None = None
    skip: frozenset[int] = frozenset()

    def names(self) -> list[str]:
        return [f"number {n}" for n in self.numbers]

    def __str__(self) -> str:
        return f"chunk of {self.numbers[0]}"


def work(chunk: Chunk) -> tuple[list[int], int]:
    """Squares; later chunks finish first."""
    time.sleep(0.01 * (5 - chunk.numbers[0] // 4 % 5))
    kept = [n for row, n in enumerate(chunk.numbers) if row not in chunk.skip]
    if chunk.deadly & set(kept) and not (chunk.once and chunk.once.exists()):
        if chunk.once:
            chunk.once.touch()
        die(chunk.how)
    return [n * n for n in kept], os.getpid()


def die(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "crashed":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "left":
        os._exit(0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    bytearray(1 << 30)


def chunks(**options: object) -> list[Chunk]:
    return [Chunk(tuple(range(start, start + 4)), **options) for start in range(0, 40, 4)]  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 3])
def test_results_keep_the_order_of_chunks(workers: int) -> None:
    results = list(map_chunks(work, chunks(), workers))
    assert [square for squares, _ in results for square in squares] == [n * n for n in range(40)]
    processes = {process for _, process in results}
    assert os.getpid() not in processes
    assert len(processes) <= workers


@pytest.mark.parametrize("how", ["killed", "crashed", "left", "out of memory"])
def test_rows_that_kill_their_worker_are_named_and_left_out(
    how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    deadly = frozenset({14, 15, 33})
    results = list(map_chunks(work, chunks(how=how, deadly=deadly), 2))
    assert [square for squares, _ in results for square in squares] == [
        n * n for n in range(40) if n not in deadly
    ]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(deadly)
    for line, number, first in zip(said, (14, 15, 33), (12, 12, 32), strict=True):
        assert f"chunk of {first}: a worker process died on number {number}, and again" in line


def test_a_worker_killed_from_outside_loses_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = chunks(how="killed", deadly=frozenset({17}), once=tmp_path / "died")
    assert [n for squares, _ in map_chunks(work, some, 2) for n in squares] == [n * n for n in range(40)]
    assert capsys.readouterr().err == ""


def die_of_company(chunk: Chunk) -> int:
    """As where memory holds each row, but not all."""
    if len(chunk.skip) == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_a_chunk_that_kills_without_any_row_doing_so_is_one_line() -> None:
    with pytest.raises(UserError, match="chunk of 0: a worker process dies on it, but on none of its rows"):
        list(map_chunks(die_of_company, chunks(), 2))
