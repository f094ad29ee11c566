"""`--device` acts in every command that computes: a device that is missing here is one line, exit code 2."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from trainer_shards import make_model, make_trainable

from janus.cli import main as janus
from pipelines.cli import main as pipelines
from shards.cli import main as shards
from trainer.cli import main as trainer

RUN = "--model model --shards shards"
BUILD = "--work work --model model"
COMMANDS = {
    "generate": (janus, "generate model --prompt why"),
    "verify reference cases": (janus, "verify model"),
    "train": (trainer, f"train {RUN} --out run"),
    "eval": (trainer, f"eval run {RUN}"),
    "vq": (pipelines, f"vq {BUILD}"),
    "build": (pipelines, f"build {BUILD} --data model --tokenizer model"),
    "preview": (shards, "preview shards --model model"),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    make_model(folder / "model")
    make_trainable(folder / "shards", {"text": 4, "t2i": 2})
    (folder / "run").mkdir()
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_device_ends_the_command(command: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    program, line = COMMANDS[command]
    result = CliRunner().invoke(program, [*line.split(), "--device", "Ascend"])
    assert result.exit_code == 2, result.output
    error = [text for text in result.output.splitlines() if not text.startswith("model: ")]
    assert len(error) == 1, result.output
    assert error[0].startswith("Error: device: Ascend cannot be used")
    assert "--device CPU" in error[0]


def test_every_command_with_a_device_is_tested() -> None:
    programs = {"janus": janus, "trainer": trainer, "pipelines": pipelines, "shards": shards}
    computing = {
        (name, command)
        for name, program in programs.items()
        for command, entry in program.commands.items()
        if any("--device" in option.opts for option in entry.params if isinstance(option, click.Option))
    }
    names = {id(program): name for name, program in programs.items()}
    assert computing == {(names[id(program)], line.split()[0]) for program, line in COMMANDS.values()}
