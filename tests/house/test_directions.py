"""Who may import whom, and commands that answer before anything slow is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

MAY_IMPORT = {
    "janus": {"janus"},
    "shards": {"janus", "shards"},
    "pipelines": {"janus", "shards", "pipelines"},
    "trainer": {"janus", "shards", "trainer"},
}
SLOW = ("mindspore", "mindone", "transformers", "webdataset", "torch")


def _imports(path: Path) -> set[str]:
    """Top-level packages a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.add("a relative import")
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    for module in modules:
        ours = _imports(module) & {*MAY_IMPORT, "tests", "a relative import"}
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


@pytest.mark.parametrize("command", ["janus", "shards", "pipelines", "trainer"])
def test_help_answers_without_the_slow_libraries(command: str) -> None:
    script = (
        f"import sys; from {command}.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print('SLOW', [name for name in {SLOW} if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert "Commands:" in run.stdout
    assert "SLOW []" in run.stdout
