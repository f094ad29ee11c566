"""Who may import whom, commands that answer before slow imports, folders and files of a good size."""

import ast
from pathlib import Path

import pytest
from commands import python
from paths import ROOT

MAY_IMPORT = {
    "janus": {"janus"},
    "shards": {"janus", "shards"},
    "pipelines": {"janus", "shards", "pipelines"},
    "trainer": {"janus", "shards", "trainer"},
}
SLOW = ("mindspore", "mindone", "transformers", "webdataset", "torch")


def _imports(path: Path) -> set[str]:
    """Top-level packages a module imports, wherever in it; "" for a relative import."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("" if node.level else node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    for module in sorted((ROOT / package).rglob("*.py")):
        ours = _imports(module) & {*MAY_IMPORT, "tests", ""}
        assert ours <= MAY_IMPORT[package], module


def _imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Those of `modules` that a module imports when it is imported itself, and those that own it."""
    found: set[str] = set()
    waiting = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found & modules


def test_no_module_imports_itself_by_a_detour() -> None:
    """Imports for type checking alone count too: whoever needs them has to read both modules."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("*.py")
    }
    graph = {name: _imported_modules(path, set(paths)) - {name} for name, path in paths.items()}
    assert sum(map(len, graph.values())) > len(graph)
    while free := {name for name, imported in graph.items() if not imported}:
        graph = {name: imported - free for name, imported in graph.items() if name not in free}
    assert graph == {}


@pytest.mark.parametrize("command", [*MAY_IMPORT, "janus convert"])
def test_help_answers_without_the_slow_libraries(command: str) -> None:
    program, *arguments = command.split()
    script = (
        f"import sys; from {program}.cli import main\n"
        f"try: main({[*arguments, '--help']})\n"
        f"finally: print('SLOW', [name for name in {SLOW} if name in sys.modules])"
    )
    said = python("-c", script).stdout
    assert "Usage:" in said
    assert "SLOW []" in said


ENTRIES, LINES, FEW = 12, 300, 25
FOLDERS = ("janus", "shards", "pipelines", "trainer", "bench")
SHORT = {
    "__init__.py": "says what a package is",
    "__main__.py": "`python -m PACKAGE`",
    "janus/common/errors.py": "the one error that every file raises",
    "janus/device.py": "the only place that asks for a device",
}
"""Files that may have fewer than FEW lines, and why; by path or, for all of a name, by name."""


@pytest.mark.parametrize("top", FOLDERS)
def test_no_folder_is_too_full_and_no_file_too_long_or_too_short(top: str) -> None:
    for folder in (ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir())):
        entries = [path.name for path in folder.iterdir() if path.name != "__pycache__"]
        assert len(entries) <= ENTRIES, f"{folder}: {len(entries)}"
    for path in (ROOT / top).rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        allowed = {path.name, path.relative_to(ROOT).as_posix()} & set(SHORT)
        assert (0 if allowed else FEW) <= lines <= LINES, f"{path}: {lines}"
