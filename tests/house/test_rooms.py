"""The house stays one to find one's way in: no folder too full, no file too long or too short."""

import pytest
from paths import ROOT

ENTRIES, LINES, FEW = 12, 300, 25
FOLDERS = ("janus", "shards", "pipelines", "trainer", "bench")
SHORT = {
    "__init__.py": "says what a package is",
    "__main__.py": "`python -m PACKAGE`",
    "janus/common/errors.py": "the one error that every file raises",
    "janus/device.py": "the only place that asks for a device",
    "bench/measures/flops.py": "a formula of the benchmark alone",
}
"""Files that may have fewer than FEW lines, and why; by path or, for all of a name, by name."""

PATHS = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("top", FOLDERS)
def test_no_folder_has_more_entries_than_one_sees_at_a_glance(top: str) -> None:
    folders = [ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir())]
    for folder in folders:
        entries = [path.name for path in folder.iterdir() if path.name != "__pycache__"]
        assert len(entries) <= ENTRIES, f"{folder}: {len(entries)}"


def test_no_file_is_too_long_or_too_short() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PATHS}
    names = {path: path.relative_to(ROOT).as_posix() for path in PATHS}
    assert {names[path]: count for path, count in lines.items() if count > LINES} == {}
    short = {names[path] for path, count in lines.items() if count < FEW and path.name not in SHORT}
    assert short <= set(SHORT)
