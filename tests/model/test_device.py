"""`--device` acts in every command that computes: a device that is missing here is one line, exit code 2."""

from dataclasses import replace
from pathlib import Path

import click
import pytest
from commands import invoke, python, refusal
from runs import make_work

from janus import device
from janus.checkpoint.folder import ModelFolder
from janus.cli import main as janus
from janus.common.errors import UserError
from janus.model.config import PRESETS
from pipelines.cli import main as pipelines
from shards.cli import main as shards
from trainer.cli import main as trainer
from trainer.config import TrainConfig

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
    computing -= {("janus", "info")}  # counts for a device, on none
    assert computing == {tuple(command.split()[:2]) for command in COMMANDS}


def test_a_device_id_is_for_an_ascend() -> None:
    assert refusal(janus, "verify", ".", "--device-id", "3").startswith("Error: device_id: 3 ")
    assert "-1 is not in the range" in refusal(janus, "verify", ".", "--device-id", "-1")


def test_a_cann_that_mindspore_does_not_take_is_named(tmp_path: Path) -> None:
    """MindSpore's own list of versions, and a folder as CANN's installer leaves it; nothing else is said."""
    info = tmp_path / "compiler" / "version.info"
    info.parent.mkdir()
    info.write_text("Version=7.6.0\n")
    command = ("-m", "janus", "verify", tmp_path, "--device", "Ascend")
    (line,) = python(*command, code=2, ASCEND_HOME_PATH=tmp_path).stderr.splitlines()
    assert line.startswith(f"Error: device: CANN 7.6.0 ({tmp_path}) is not for MindSpore")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--device", "CPU", "--dtype", "bfloat16"), "dtype: bfloat16 has no kernels on CPU"),
        (("--dtype", "bfloat16"), "dtype: bfloat16 has no kernels on CPU"),
        (("--dtype", "float16"), "'float16' is not one of"),
    ],
)
def test_a_dtype_that_the_device_cannot_is_refused(options: tuple[str, ...], named: str, work: Path) -> None:
    arguments = ("train", "--model", "tiny", "--shards", work / "none", "--out", work / "new")
    assert named in refusal(trainer, *arguments, *options)
    assert not (work / "new").exists()


def test_auto_is_resolved_to_the_devices_dtype() -> None:
    assert device.use("CPU", "auto") == ("CPU", "float32")
    assert TrainConfig(device="CPU").on_device().dtype == "float32"


@pytest.mark.parametrize(("heads", "size"), [(32, None), (8, None), (6, 85), (3, 170), (1, None)])
def test_bfloat16_takes_heads_that_flash_attention_takes(heads: int, size: int | None) -> None:
    """Multiples of 16 up to 512; refused before the network is built, in bfloat16 alone."""
    config = replace(PRESETS["bench"], text=replace(PRESETS["bench"].text, num_heads=heads))
    folder = ModelFolder("odd", config)
    if size:
        with pytest.raises(UserError, match=f"heads are {size} wide.*multiples of 16 up to 512"):
            folder.build("bfloat16")
    else:
        device.check_head_sizes(config.head_sizes, "bfloat16")
    device.check_head_sizes(config.head_sizes, "float32")
