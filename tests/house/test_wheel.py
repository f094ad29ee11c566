"""The wheel, installed alone into an environment of its own, has all that its commands need."""

import shutil
import sys
import sysconfig
from functools import partial
from pathlib import Path

import pytest
from commands import execute
from paths import ROOT

run = partial(execute, PYTHONPATH=None)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel; libraries are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("janus", "shards", "pipelines", "trainer"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    wheel = ("--quiet", "--no-deps", "--wheel-dir", "dist", "./source")
    run(sys.executable, "-m", "pip", "wheel", *wheel, cwd=folder)
    run(sys.executable, "-m", "venv", folder / "fresh")
    python = folder / "fresh" / "bin" / "python"
    run(python, *["-m", "pip", "install", "--quiet", "--no-deps"], *(folder / "dist").glob("*.whl"))
    # Its .pth files, the project's own among them, are not read there: only libraries are found.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    (Path(site) / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    assert run(python, "-c", "import janus; print(janus.__file__)", cwd=folder).stdout.startswith(site)
    return python.parent


@pytest.mark.slow
def test_from_sample_to_report(programs: Path, tmp_path: Path) -> None:
    model = "--config sample --task text --model data/tiny --steps 2 --eval-samples 2"
    for command in (
        "pipelines sample --data data",
        "pipelines build --data data --work work --out shards --tokenizer data/tokenizer --source pubmedqa",
        "shards preview shards --out preview.html",
        f"trainer train --shards shards --out run {model}",
        "trainer report run",
    ):
        (tmp_path / "run/report/report.html").unlink(missing_ok=True)
        program, *arguments = command.split()
        run(programs / program, *arguments, cwd=tmp_path)
    for page in ("preview.html", "run/report/report.html"):
        assert "<html" in (tmp_path / page).read_text(encoding="utf-8")
