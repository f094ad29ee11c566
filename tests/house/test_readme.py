"""What README tells a newcomer to type: its Python runs, its commands and targets are there."""

import importlib
import re
from pathlib import Path

import pytest
from paths import ROOT
from shard_factory import make_mixed

from trainer.run.ledger import Ledger
from trainer.stream.feed import DrawnSamples, StepData

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
PROGRAMS = {
    name: importlib.import_module(f"{name}.cli").main for name in ("janus", "shards", "pipelines", "trainer")
}
COMMANDS = sorted(set(re.findall(rf"(?:`|bin/|^)({'|'.join(PROGRAMS)}) ([a-z][a-z-]*)", README, flags=re.M)))


@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    make_mixed(tmp_path / "data/sample-tiny/shards", 6, 384)
    ledger = Ledger(tmp_path / "outputs/mixed-001", 0)
    for step in (1233, 1234):
        ledger.add(step, StepData([], [DrawnSamples("vqa", ["roco/1"], [0], 1)]))
    ledger.save()
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "vqa" in capsys.readouterr().out


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_commands_exist(program: str, command: str) -> None:
    assert command in PROGRAMS[program].commands


def test_options_exist() -> None:
    commands = [command for group in PROGRAMS.values() for command in group.commands.values()]
    parameters = [parameter for command in commands for parameter in command.params]
    known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
    others = {"--help", "--local-dir"}  # the latter is huggingface-cli's
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known | others


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.M))
    assert {"train", "test"} <= named
    assert named <= targets


PAGES = [*ROOT.glob("*.md"), ROOT / "bench/README.md", *ROOT.glob("docs/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = {page.parent / link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link}
    named = {ROOT / path for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]*\.(?:py|json|yaml|md))`", text)}
    if page.name != "LOG.md":  # a log speaks of files as they were
        assert {str(path) for path in links | named if not path.exists()} == set()


def test_readme_is_short_enough_to_finish() -> None:
    assert len(README.splitlines()) <= 250
