"""Chunks over processes: in order, and a row on which its worker dies is found, named and left out."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from textwrap import indent

import pyarrow as pa
import pytest

from janus.common.errors import UserError
from pipelines.pool import Chunk, chunks_of, map_chunks
from pipelines.tables import write_table


def work(chunk: Chunk, how: str = "", deadly: tuple = (), once: Path | None = None) -> tuple[list[int], int]:
    """Squares; later chunks finish first. `deadly` numbers kill, with `once` only the first time."""
    time.sleep(0.01 * (5 - chunk.batch % 5))
    keys = chunk.read()["source_key"].to_pylist()
    kept = [int(key) for row, key in enumerate(keys) if row not in chunk.skip]
    if set(deadly) & set(kept) and not (once and once.exists()):
        if once:
            once.touch()
        die(how)
    return [n * n for n in kept], os.getpid()


def die(how: str) -> None:
    if how in SIGNALS:
        os.kill(os.getpid(), SIGNALS[how])
    if how == "left":
        os._exit(0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    bytearray(1 << 30)


SIGNALS = {"killed": signal.SIGKILL, "crashed": signal.SIGSEGV}


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> list[Chunk]:
    """The numbers below 40, four to a chunk."""
    folder = tmp_path_factory.mktemp("pool")
    numbers = {"source": ["numbers"] * 40, "source_key": [str(n) for n in range(40)]}
    write_table(folder / "numbers.arrow", pa.table(numbers), 4)
    return chunks_of(folder / "numbers.arrow", folder, "squares")


def squares(results: Iterable[tuple[list[int], int]]) -> list[int]:
    return [square for squares, _ in results for square in squares]


@pytest.mark.parametrize("workers", [1, 3])
def test_results_keep_the_order_of_chunks(chunks: list[Chunk], workers: int) -> None:
    results = list(map_chunks(work, chunks, workers))
    assert squares(results) == [n * n for n in range(40)]
    processes = {process for _, process in results}
    assert os.getpid() not in processes
    assert len(processes) <= workers


@pytest.mark.parametrize(
    ("how", "deadly"), [("killed", (14, 15, 33)), ("crashed", (1,)), ("left", (2,)), ("out of memory", (3,))]
)
def test_deadly_rows_are_named(chunks: list, how: str, deadly: tuple, capsys: pytest.CaptureFixture) -> None:
    some = chunks if how == "killed" else chunks[:1]  # finding a row takes a dozen processes
    results = map_chunks(partial(work, how=how, deadly=deadly), some, 2)
    assert squares(results) == [n * n for n in range(4 * len(some)) if n not in deadly]
    said = capsys.readouterr().err.splitlines()
    for line, number in zip(said, deadly, strict=True):
        assert str(chunks[number // 4]) in line
        assert f"row numbers/{number}," in line


def test_a_worker_killed_once(chunks: list, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    dies_once = partial(work, how="killed", deadly=(17,), once=tmp_path / "died")
    assert squares(map_chunks(dies_once, chunks, 2)) == [n * n for n in range(40)]
    assert capsys.readouterr().err == ""


def die_of_company(chunk: Chunk) -> int:
    """As where memory holds each row, but not all."""
    if len(chunk.skip) == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_a_chunk_that_kills_without_any_row_doing_so_is_one_line(chunks: list[Chunk]) -> None:
    says = r"batch 0 of .*: a worker process dies on it, but on none of its rows"
    with pytest.raises(UserError, match=says):
        list(map_chunks(die_of_company, chunks, 2))


WHERE = """
import multiprocessing
from pipelines.pool import start_forkserver
start_forkserver(["shards.pictures"])
with multiprocessing.get_context("forkserver").Pool(1) as pool:
    print(pool.apply(eval, ("__import__('shards.pictures', fromlist=['CODECS']).__file__",)))
"""


def test_a_folder_of_shards_where_the_command_runs_is_not_taken_for_the_package(tmp_path: Path) -> None:
    """Seen with an editable install: its packages come after the folders on the path."""
    (tmp_path / "shards" / "pictures").mkdir(parents=True)
    script = tmp_path / "bin" / "command"  # as installed commands are: not where they are called from
    script.parent.mkdir()
    script.write_text(f'if __name__ == "__main__":\n{indent(WHERE, "    ")}')
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("shards/pictures.py\n"), done.stdout + done.stderr
