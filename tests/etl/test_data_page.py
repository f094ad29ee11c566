"""docs/data.md: every example is written as the page has it, and every command prints what the page says."""

import re
import shlex
from pathlib import Path

import pytest
from paths import ROOT
from raw_data import picture, run_well

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", PAGE, re.M | re.S)


def commands(text: str) -> list[tuple[str, str]]:
    """(command, output) of a console block."""
    parts = re.split(r"^\$ pipelines (.*)\n", text, flags=re.M)[1:]
    return list(zip(parts[0::2], parts[1::2], strict=True))


def test_every_example_prints_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, size in {"a.png": (40, 30), "b.png": (30, 40), "paintings/c.png": (30, 40)}.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(picture(size=size))
    shown = 0
    for kind, what, text in BLOCKS:
        if what.startswith("file="):
            Path(what.removeprefix("file=")).write_text(text, encoding="utf-8")
        elif what == "run":
            exec(compile(text, "docs/data.md", "exec"), {})
        elif kind == "console":
            for command, output in commands(text):
                assert run_well(*shlex.split(command)).strip() == output.strip(), command
                shown += 1
    assert shown == PAGE.count("$ pipelines ") == 11
