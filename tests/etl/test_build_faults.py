"""The build under fault: killed anywhere, out of memory, out of room; run again, it ends as ever."""

import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import raw_data
from disks import remount, small_disk
from paths import ROOT
from PIL import Image
from raw_data import build_command, files_of, picture, run_well, skipped, vqa_row

from pipelines.tables import read_table
from shards.compare.check import verify_folder

KILLS = 12
OUT_OF_MEMORY = 300 << 20
"""Bytes at which a worker is killed, as the kernel does where memory ends."""

PLACES = [f"work/.tmp-{stage}/*" for stage in ("ingest", "tokenize", "images", "write")]
PLACES += [f".tmp-shards/{name}" for name in ("train/text*", "pictures/*", "tokenizer", "manifest.json")]
"""What is there while each part of a build is being written."""

Command = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 questions, and 90 pictures with a question each: 40 MB of shards where pixels stay raw."""
    data = tmp_path_factory.mktemp("faults") / "data"
    rows = [{"pubid": i, "question": f"Is {i} even?", "long_answer": f"{i % 2 == 0}."} for i in range(1500)]
    raw_data.write_pubmedqa(data, rows)
    images = {f"{i}.png": picture((i, 99, 9), (50 + i, 40)) for i in range(90)}
    questions = [vqa_row(name, name, f"<image>\nWhat is {name}?", "A thing") for name in images]
    raw_data.write_medical_vqa(data, questions, images)
    return data


@pytest.fixture(scope="module")
def command(raw: Path, sample_data: Path) -> Command:
    tokenizer, python = sample_data / "tokenizer", (sys.executable, "-m", "pipelines")
    options = ("--workers", 2, "--pixels", "raw")
    return lambda root: [*python, *map(str, build_command(raw, root, tokenizer, *options))]


@pytest.fixture(scope="module")
def whole(command: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("whole")
    run_well(*command(root)[3:])
    assert verify_folder(root / "shards") == []
    return files_of(root / "shards")


def run_process(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def finish(arguments: list[str]) -> tuple[list[str], dict[str, bytes]]:
    """Run it again: the stages it skips, and the shards."""
    done = run_process(arguments)
    assert done.returncode == 0, done.stderr
    return skipped(done.stdout), files_of(Path(arguments[arguments.index("--out") + 1]))


def run_until(arguments: list[str], reached: Callable[[], bool], delay: float) -> bool:
    """Run the command and kill it (-9) `delay` after `reached`; whether it was still running."""
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not reached():
        time.sleep(0.001)
    time.sleep(delay)
    alive = process.poll() is None
    process.kill()
    _, errors = process.communicate()
    assert alive or process.returncode == 0, errors.decode()
    return alive


@pytest.mark.slow
def test_killed_anywhere_it_ends_the_same(command: Command, tmp_path: Path, whole: dict) -> None:
    """One folder, killed over and over at drawn places; the workers have to see to it themselves."""
    dice, kills, arguments, shards = random.Random(4), 0, command(tmp_path), tmp_path / "shards"
    for place in [*PLACES, *dice.choices(PLACES, k=KILLS - len(PLACES))]:
        delay = dice.choice([0, dice.uniform(0, 0.02), dice.uniform(0, 0.2)])
        killed = run_until(arguments, lambda place=place: any(tmp_path.glob(place)), delay)  # type: ignore[misc]
        kills += killed
        if not killed:  # too late: begin anew
            assert files_of(shards) == whole
            shutil.rmtree(tmp_path / "work")
    assert kills >= KILLS // 2
    assert finish(arguments)[1] == whole
    # Killed between the two renames of publishing.
    shutil.copytree(shards, tmp_path / ".tmp-shards")
    shards.rename(tmp_path / ".old-shards")
    assert finish(arguments)[1] == whole
    assert {path.name for path in tmp_path.iterdir()} == {"work", "shards"}


def test_a_stage_killed_while_its_old_folder_is_removed_is_made_again(raw: Path, tmp_path: Path) -> None:
    """The mark goes first: with it gone, what is left of the folder is not taken for a finished stage."""
    run_well("ingest", "--data", raw, "--work", tmp_path)
    before = files_of(tmp_path / "ingest")
    for name in ("stage.json", "pubmedqa.rows.arrow"):
        (tmp_path / "ingest" / name).unlink()
    run_well("ingest", "--data", raw, "--work", tmp_path)
    assert files_of(tmp_path / "ingest") == before


def processes_of(session: int) -> Iterator[tuple[int, int]]:
    """(pid, resident bytes) of each process of a session, but its leader."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[3]) == session != int(folder.name):
            yield int(folder.name), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def kill_the_fat(process: subprocess.Popen[str], killed: list[int]) -> None:
    """Do as the kernel does where memory ends: kill -9 whichever worker holds too much."""
    while process.poll() is None:
        for pid, resident in processes_of(process.pid):
            if resident > OUT_OF_MEMORY:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        time.sleep(0.003)


@pytest.mark.slow
def test_a_picture_that_kills_its_worker_is_rejected_and_no_other(tmp_path: Path, sample_data: Path) -> None:
    giant, work = io.BytesIO(), tmp_path / "work"
    Image.new("RGB", (9300, 9300), (1, 2, 3)).save(giant, "PNG", compress_level=1)
    images = {f"{i}.png": picture((i, 99, 9)) for i in range(6)} | {"giant.png": giant.getvalue()}
    pairs = [(name, q) for name in images for q in (1, 2)]
    rows = [vqa_row(f"{name}-{q}", name, f"<image>\nIs {name} {q}?", "Yes") for name, q in pairs]
    raw_data.write_medical_vqa(tmp_path, rows, images)
    run_well("ingest", "--data", tmp_path, "--work", work)
    arguments = ["images", "--work", work, "--tokenizer", sample_data / "tokenizer", "--max-reject-rate", 1]
    command = [sys.executable, "-m", "pipelines", *map(str, arguments), "--workers", "2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    killed: list[int] = []
    watch = threading.Thread(target=kill_the_fat, args=(process, killed))
    watch.start()
    _, errors = process.communicate()
    watch.join()
    assert process.returncode == 0, errors
    assert len(set(killed)) >= 3  # with others, in halves, alone
    rejects = read_table(work / "rejects.arrow").to_pylist()
    assert {row["source_key"] for row in rejects} == {"giant.png-1", "giant.png-2"}
    assert {row["reason"] for row in rejects} == {"kills_worker"}
    assert read_table(work / "images/understanding.index.arrow").num_rows == 6
    assert "a worker process died on picture" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stage"), [(2_000, "ingest"), (200_000, "tokenize"), (12 << 20, "images")])
def test_files_that_cannot_grow(command: Command, tmp_path: Path, whole: dict, size: int, stage: str) -> None:
    arguments = command(tmp_path)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    assert_one_line(run_process(arguments, preexec_fn=limit), "File too large")
    finished = {path.parent.name for path in (tmp_path / "work").glob("[a-z]*/stage.json")}
    assert not (tmp_path / "shards").exists()
    assert stage not in finished
    skips, shards = finish(arguments)
    assert set(skips) >= {"ingest", "tokenize", "images"} & finished
    assert shards == whole


def assert_one_line(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert says in line
    assert "finished stages are kept" in line


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "8m") as disk:
        yield disk


@pytest.mark.slow
def test_a_full_disk_is_one_line(command: Command, disk: Path, whole: dict) -> None:
    arguments = command(disk)
    assert_one_line(run_process(arguments), "No space left on device")
    assert not list(disk.glob("work/.tmp-images"))  # what is half done gives its room back
    finished = sorted(path.parent.name for path in disk.glob("work/*/stage.json"))
    assert finished == ["ingest", "tokenize"]
    remount(disk, "size=60m")
    assert_one_line(run_process(arguments), "No space left on device")  # the pictures fit, the shards do not
    assert not list(disk.glob(".tmp-shards"))
    remount(disk, "size=200m")
    skips, shards = finish(arguments)
    assert skips[:3] == ["ingest", "tokenize", "images"]
    assert shards == whole


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_one_line(command: Command, disk: Path) -> None:
    remount(disk, "ro")
    assert_one_line(run_process(command(disk)), "Read-only file system")
    (disk.parent / "file").write_text("")
    assert_one_line(run_process(command(disk.parent / "file")), "Not a directory")
