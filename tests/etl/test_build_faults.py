"""The build under fault: killed anywhere, out of memory, out of room; run again, it ends as ever."""

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from PIL import Image
from raw_data import (
    build_command,
    files_of,
    picture,
    run_well,
    skipped,
    vqa_row,
    write_medical_vqa,
    write_pubmedqa,
)

from pipelines.tables import read_table
from shards.check import verify_folder

KILLS = 12
OUT_OF_MEMORY = 300 << 20
"""Bytes at which a worker is killed, as the kernel does where memory ends."""

PLACES = [f"work/.tmp-{stage}/*" for stage in ("ingest", "tokenize", "images", "write")]
PLACES += [f".tmp-shards/{name}" for name in ("train/text*", "train/vqa*", "tokenizer", "manifest.json")]
"""What is there while each part of a build is being written."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 questions, and 90 pictures with a question each: 40 MB of shards."""
    data = tmp_path_factory.mktemp("faults") / "data"
    rows = [{"pubid": i, "question": f"Is {i} even?", "long_answer": f"{i % 2 == 0}."} for i in range(1500)]
    write_pubmedqa(data, rows)
    names = [f"{i}.png" for i in range(90)]
    questions = [vqa_row(name, name, f"<image>\nWhat is {name}?", "A thing") for name in names]
    write_medical_vqa(data, questions, {f"{i}.png": picture((i, 99, 9), (50 + i, 40)) for i in range(90)})
    return data


def command(raw: Path, root: Path, tokenizer: Path) -> list[str]:
    build = build_command(raw, root, tokenizer, "--workers", 2)
    return [sys.executable, "-m", "pipelines", *map(str, build)]


def run_process(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def whole(raw: Path, sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of a build that nothing happened to."""
    root = tmp_path_factory.mktemp("whole")
    run_well(*build_command(raw, root, sample_data / "tokenizer", "--workers", 2))
    assert verify_folder(root / "shards") == []
    return files_of(root / "shards")


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
def test_killed_anywhere_and_run_again_it_ends_with_the_same_bytes(
    raw: Path, sample_data: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """One folder, killed over and over at drawn places; the workers have to see to it themselves."""
    dice, kills = random.Random(4), 0
    arguments = command(raw, tmp_path, sample_data / "tokenizer")
    for place in [*PLACES, *dice.choices(PLACES, k=KILLS - len(PLACES))]:
        delay = dice.choice([0, dice.uniform(0, 0.02), dice.uniform(0, 0.2)])
        killed = run_until(arguments, lambda place=place: any(tmp_path.glob(place)), delay)  # type: ignore[misc]
        kills += killed
        if not killed:  # too late: begin anew
            assert files_of(tmp_path / "shards") == whole
            shutil.rmtree(tmp_path / "work")
    assert kills >= KILLS // 2
    done = run_process(arguments)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "shards") == whole
    assert {path.name for path in tmp_path.iterdir()} == {"work", "shards"}


@pytest.mark.slow
def test_killed_between_the_two_renames_of_publishing(
    raw: Path, sample_data: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    arguments = command(raw, tmp_path, sample_data / "tokenizer")
    run_process(arguments)
    shutil.copytree(tmp_path / "shards", tmp_path / ".tmp-shards")
    (tmp_path / "shards").rename(tmp_path / ".old-shards")
    done = run_process(arguments)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "shards") == whole
    assert {path.name for path in tmp_path.iterdir()} == {"work", "shards"}


def test_a_stage_killed_while_its_old_folder_is_removed_is_made_again(
    raw: Path, sample_data: Path, tmp_path: Path
) -> None:
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
def test_a_picture_that_kills_its_worker_is_set_aside_and_no_other(tmp_path: Path, sample_data: Path) -> None:
    giant = io.BytesIO()
    Image.new("RGB", (9300, 9300), (1, 2, 3)).save(giant, "PNG", compress_level=1)
    images = {f"{i}.png": picture((i, 99, 9)) for i in range(6)} | {"giant.png": giant.getvalue()}
    rows = [
        vqa_row(f"{name}-{q}", name, f"<image>\nIs {name} {q}?", "Yes") for name in images for q in (1, 2)
    ]
    write_medical_vqa(tmp_path, rows, images)
    run_well("ingest", "--data", tmp_path, "--work", tmp_path / "work")
    arguments = ["images", "--work", tmp_path / "work", "--tokenizer", sample_data / "tokenizer"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", *map(str, arguments), "--max-reject-rate", "1", "--workers", "2"],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killed: list[int] = []
    watch = threading.Thread(target=kill_the_fat, args=(process, killed))
    watch.start()
    _, errors = process.communicate()
    watch.join()
    assert process.returncode == 0, errors
    assert len(set(killed)) >= 3  # with others, in halves, alone
    rejects = read_table(tmp_path / "work" / "rejects.arrow").to_pylist()
    assert {(row["source_key"], row["reason"]) for row in rejects} == {
        ("giant.png-1", "kills_worker"),
        ("giant.png-2", "kills_worker"),
    }
    assert read_table(tmp_path / "work/images/understanding.index.arrow").num_rows == 6
    assert "a worker process died on picture" in errors
    assert "Traceback" not in errors


def limit_files(size: int) -> Callable[[], None]:
    """For preexec_fn: no file may grow beyond `size` bytes."""

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stage"), [(2_000, "ingest"), (200_000, "tokenize"), (12 << 20, "images")])
def test_where_files_cannot_grow_one_line_says_so_and_finished_stages_stay(
    raw: Path, sample_data: Path, tmp_path: Path, whole: dict[str, bytes], size: int, stage: str
) -> None:
    arguments = command(raw, tmp_path, sample_data / "tokenizer")
    done = run_process(arguments, preexec_fn=limit_files(size))
    assert_one_line(done, "File too large")
    finished = {path.name for path in (tmp_path / "work").glob("[a-z]*/stage.json")}
    assert not (tmp_path / "shards").exists()
    assert stage not in finished
    done = run_process(arguments)
    assert done.returncode == 0, done.stderr
    assert set(skipped(done.stdout)) >= {"ingest", "tokenize", "images"} & finished
    assert files_of(tmp_path / "shards") == whole


def assert_one_line(done: subprocess.CompletedProcess[str], says: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert says in line
    assert "finished stages are kept" in line


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_more_room_ends_it_well(
    raw: Path, sample_data: Path, small_disk: Path, whole: dict[str, bytes]
) -> None:
    arguments = command(raw, small_disk, sample_data / "tokenizer")
    done = run_process(arguments)
    assert_one_line(done, "No space left on device")
    assert not list(small_disk.glob("work/.tmp-images"))  # what is half done gives its room back
    finished = sorted(path.parent.name for path in small_disk.glob("work/*/stage.json"))
    assert finished == ["ingest", "tokenize"]
    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
    done = run_process(arguments)
    assert_one_line(done, "No space left on device")  # the pictures fit, the shards do not
    assert not list(small_disk.glob(".tmp-shards"))
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    done = run_process(arguments)
    assert done.returncode == 0, done.stderr
    assert skipped(done.stdout)[:3] == ["ingest", "tokenize", "images"]
    assert files_of(small_disk / "shards") == whole


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_one_line(raw: Path, sample_data: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = run_process(command(raw, small_disk, sample_data / "tokenizer"))
    assert_one_line(done, "Read-only file system")
    (small_disk.parent / "file").write_text("")
    done = run_process(command(raw, small_disk.parent / "file", sample_data / "tokenizer"))
    assert_one_line(done, "Not a directory")
