"""What the Makefile promises: help that names everything, and paths as people have them."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from commands import execute
from paths import ROOT
from raw_data import write_pubmedqa
from trainer_shards import SIDE, make_model


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder whose name has a blank, as a clone of the project that is set up already."""
    folder = tmp_path / "my clone"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv/.installed").touch()
    return folder


def make(folder: Path, *arguments: str) -> str:
    """What make prints."""
    return execute("make", "-f", "Makefile", *arguments, cwd=folder).stdout


def test_make_help_lists_every_target_and_variable() -> None:
    text, said = (ROOT / "Makefile").read_text(encoding="utf-8"), make(ROOT, "help")
    names = re.findall(r"^([A-Za-z-]+)(?=: | \?=)", text, flags=re.M)
    assert {"train", "test", "shards", "MODEL"} <= set(names)
    assert [name for name in names if name not in said] == ["PYTHON"]


def commands(printed: str) -> list[list[str]]:
    """The project's own commands among what `make -n` prints."""
    lines = printed.replace("\\\n", "").splitlines()
    return [shlex.split(line.rpartition("bin/")[2]) for line in lines if "bin/" in line]


def test_make_preview_decodes_with_the_model_that_made_the_codes(clone: Path) -> None:
    *_, build, preview = commands(make(clone, "-n", "preview", "MODEL=m", "SHARDS=s", "ARGS=--samples 9"))
    assert " ".join(build).startswith("pipelines build ")
    assert " ".join(build).endswith(" --model m")
    assert build[build.index("--out") + 1] == "s"
    assert preview == ["shards", "preview", "s", "--model", "m", "--samples", "9"]


def test_paths_with_blanks_quotes_and_other_letters_stay_whole(clone: Path) -> None:
    raw, model = clone / "it's  Röntgen", clone / "Модель 1"
    raw.mkdir()
    model.mkdir()
    (model / "tokenizer.json").touch()
    variables = [f"DATA={raw.name}", f"MODEL={model}", "RECIPE=my recipe.yaml", "OUT=out 1", "ARGS=--a b"]
    build, train = commands(make(clone, "-n", "train", *variables))
    name = f"data/{raw.name}-{model.name}"
    folders = ["--data", raw.name, "--work", f"{name}/work", "--out", f"{name}/shards"]
    assert build == ["pipelines", "build", *folders, "--tokenizer", str(model), "--model", str(model)]
    run = ["--model", str(model), "--shards", f"{name}/shards", "--out", "out 1", "--a", "b"]
    assert train == ["trainer", "train", "--config", "my recipe.yaml", *run]


@pytest.mark.slow
def test_data_and_model_in_such_folders_are_built_and_trained_on(clone: Path, tmp_path: Path) -> None:
    raw, model = tmp_path / "my Röntgen data", make_model(tmp_path / "Модель 1")
    (model / "preprocessor_config.json").write_text(json.dumps({"image_size": SIDE}))
    rows = [{"pubid": i, "question": f"is w{i} w{i + 1} ?", "long_answer": "w1 w2"} for i in range(20)]
    write_pubmedqa(raw, rows)
    folders = [f"DATA={raw}", f"MODEL={model}", "OUT=my runs/größer"]
    make(clone, "shards", *folders)
    assert (clone / f"data/{raw.name}-{model.name}/shards/manifest.json").is_file()
    make(clone, "train", "TASK=text", "STEPS=1", *folders)
    assert (clone / "my runs/größer/checkpoints/step-000001/model.safetensors").is_file()
