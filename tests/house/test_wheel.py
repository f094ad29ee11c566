"""The wheel, installed alone into an environment of its own, has all that its commands need."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from paths import ROOT

PACKAGES = ("janus", "shards", "pipelines", "trainer")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(folder: Path, *command: object) -> str:
    """What the command prints, run in the folder; it must succeed."""
    words = list(map(str, command))
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel; libraries are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    run(
        folder,
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        "dist",
        "./source",
    )
    run(folder, sys.executable, "-m", "venv", "fresh")
    python = folder / "fresh" / "bin" / "python"
    (wheel,) = (folder / "dist").glob("*.whl")
    run(folder, python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    # Its .pth files, the project's own among them, are not read there: only libraries are found.
    site = run(folder, python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(site) / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    assert run(folder, python, "-c", "import janus; print(janus.__file__)").startswith(site)
    return python.parent


@pytest.mark.slow
def test_from_sample_to_report(programs: Path, tmp_path: Path) -> None:
    run(tmp_path, programs / "pipelines", "sample", "--data", "data")
    build = ["--data", "data", "--work", "work", "--out", "shards", "--tokenizer", "data/tokenizer"]
    run(tmp_path, programs / "pipelines", "build", *build, "--source", "pubmedqa")
    run(tmp_path, programs / "shards", "preview", "shards", "--out", "preview.html")
    options = [
        "--config",
        "sample",
        "--model",
        "data/tiny",
        "--task",
        "text",
        "--shards",
        "shards",
        "--steps",
        2,
    ]
    run(tmp_path, programs / "trainer", "train", *options, "--eval-samples", 2, "--out", "run")
    report = tmp_path / "run/report/report.html"
    report.unlink()
    run(tmp_path, programs / "trainer", "report", "run")
    assert "<html" in report.read_text(encoding="utf-8")
    assert "<html" in (tmp_path / "preview.html").read_text(encoding="utf-8")
