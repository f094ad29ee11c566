"""Two at once in one folder: the second is told so and harms nothing; who was killed locks nothing."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT
from raw_data import run, run_well, write_pubmedqa
from runs import TEXT, finish, left_behind, refused, start, steps_seen, train_well

from janus.common.errors import UserError
from janus.common.files import exclusive_lock

HOLD = """
import sys, time
from pathlib import Path
from janus.common.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_goes_with_its_process_whatever_ends_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="taken"), exclusive_lock(path, "taken"):
        pass
    assert path.exists()  # the one who was refused did not remove it
    holder.kill()
    holder.communicate()
    with (
        exclusive_lock(path, "taken"),
        pytest.raises(UserError, match="taken again"),
        exclusive_lock(path, "taken again"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_was_removed_meanwhile_excludes_nobody_twice(tmp_path: Path) -> None:
    """Whoever finds another file under the name than the one locked takes the new one."""
    path = tmp_path / ".lock"
    with exclusive_lock(path, "first"):
        path.unlink()
        with (
            exclusive_lock(path, "second"),
            pytest.raises(UserError, match="third"),
            exclusive_lock(path, "third"),
        ):
            pass


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    rows = [{"pubid": i, "question": f"Is {i} even?", "long_answer": f"{i % 2 == 0}."} for i in range(40)]
    write_pubmedqa(tmp_path / "data", rows)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("lock", "says"),
    [
        ("work/.lock", "work: another build is at work in this folder; wait for its end"),
        (".lock-shards", "shards: another build is writing this folder; wait for its end"),
    ],
)
def test_a_second_build_in_one_folder_is_told_so(raw: Path, sample_data: Path, lock: str, says: str) -> None:
    root = raw.parent
    folders = ["--data", raw, "--work", root / "work", "--out", root / "shards"]
    given = ["build", *folders, "--tokenizer", sample_data / "tokenizer"]
    (root / "work").mkdir()
    with exclusive_lock(root / lock, "the first build"):
        result = run(*given)
        assert result.exit_code == 2
        (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
        assert says in line
        assert not (root / "shards").exists()
        if lock == "work/.lock":  # a single stage asks as well
            assert says in run("ingest", *folders[:4]).output
            assert not (root / "work" / "ingest").exists()
    run_well(*given)
    assert {path.name for path in root.iterdir()} == {"data", "work", "shards"}
    assert not (root / "work" / ".lock").exists()


@pytest.mark.slow
def test_a_build_in_progress_is_not_disturbed(raw: Path, sample_data: Path) -> None:
    """The second process ends with one line, the first with its shards."""
    root = raw.parent
    folders = ["--data", raw, "--work", root / "work", "--out", root / "shards"]
    given = ["build", *folders, "--tokenizer", sample_data / "tokenizer"]
    command = [sys.executable, "-m", "pipelines", *map(str, given)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (root / "work" / ".lock").exists() and first.poll() is None:
        time.sleep(0.001)
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode == 2, second.stdout
    assert second.stderr.startswith("Error: ")
    assert second.stderr.count("\n") == 1
    _, errors = first.communicate()
    assert first.returncode == 0, errors
    assert (root / "shards" / "manifest.json").is_file()


def test_two_that_begin_one_new_run_do_not_share_it(work: Path) -> None:
    """The folder has no run yet, but one has just claimed it."""
    (work / "new").mkdir()
    with exclusive_lock(work / "new" / ".lock", "the first"):
        assert "another trainer is at work" in refused(work, *TEXT, "--out", "new", "--steps", 1)
    assert list((work / "new").iterdir()) == []


@pytest.mark.slow
def test_a_second_trainer_leaves_a_run_in_progress_alone(work: Path) -> None:
    given = [*TEXT, "--steps", 40, "--save-every", 10]
    train_well(work, *given, "--out", "alone")
    process = start(work, *given, "--out", "disturbed")
    next(steps_seen(process))
    assert "another trainer is at work" in refused(work, "--out", "disturbed", "--resume")
    code, _, err = finish(process)
    assert code == 0, err
    assert left_behind(work / "disturbed", 40) == left_behind(work / "alone", 40)
    assert not (work / "disturbed" / ".lock").exists()
