"""`--device` acts in every command that computes: a device that is missing here is one line, exit code 2."""

from pathlib import Path

import click
import pytest
from commands import invoke
from runs import make_work

from janus.cli import main as janus
from pipelines.cli import main as pipelines
from shards.cli import main as shards
from trainer.cli import main as trainer

PROGRAMS = {"janus": janus, "trainer": trainer, "pipelines": pipelines, "shards": shards}
COMMANDS = (
    "janus generate model --prompt why",
    "janus verify model",
    "trainer train --model model --shards shards --out run",
    "trainer eval run --model model --shards shards",
    "pipelines vq --work work --model model",
    "pipelines build --work work --model model --data model --tokenizer model",
    "shards preview shards --model model",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_work(tmp_path_factory.mktemp("work"))
    (folder / "run").mkdir()
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_device_ends_the_command(command: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    program, *arguments = command.split()
    output = invoke(PROGRAMS[program], *arguments, "--device", "Ascend", code=2).output
    (error,) = (line for line in output.splitlines() if not line.startswith("model: "))
    assert error.startswith("Error: device: Ascend cannot be used")
    assert "--device CPU" in error


def test_every_command_with_a_device_is_tested() -> None:
    computing = {
        (name, command)
        for name, program in PROGRAMS.items()
        for command, entry in program.commands.items()
        if any("--device" in option.opts for option in entry.params if isinstance(option, click.Option))
    }
    assert computing == {tuple(command.split()[:2]) for command in COMMANDS}
