"""Compiled graphs that the next start finds again.

MindSpore's compile cache numbers graphs in the order of their compilation, and loads whatever lies under a
number: in another order, or after a change that its own check does not see, silently another graph. So each
graph here has a key of everything that decides it, and lies under MindSpore's number, in a folder of this
process, only while that one graph is compiled. A file that does not match its digest is not loaded. A graph
is always the `construct` of a Cell: only then does MindSpore bind a loaded graph's weights to the Cell's.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import janus
from janus import device
from janus.common.files import write_file

if TYPE_CHECKING:
    from mindspore import Tensor, nn

    from janus.model.config import JanusConfig

FOLDER = "JANUS_CACHE"
"""Environment variable: the folder that keeps graphs; empty to keep none."""
KEPT_SECONDS = 30 * 24 * 3600
"""A graph that no start has used for this long is removed."""


class Graphs:
    """Compiles Cells, and counts graphs and seconds."""

    def __init__(self, facts: Mapping[str, object], folder: Path | None) -> None:
        """facts: what decides the graphs besides sources, versions and arguments. folder: None keeps none."""
        self.count, self.loaded = 0, 0  # graphs compiled or loaded; those loaded among them
        self.seconds = 0.0  # until their first calls returned
        self._facts, self._folder = dict(facts), folder

    def compile(self, cell: nn.Cell, name: str) -> Callable[..., Any]:
        """`cell.construct` as one graph for each set of argument shapes. name: tells it from the others."""
        graph = device.to_graph(cell.construct)
        known: set[tuple] = set()

        def run(*arguments: Tensor) -> Any:
            shapes = tuple((argument.shape, str(argument.dtype)) for argument in arguments)
            if shapes in known:
                return graph(*arguments)
            start = time.perf_counter()
            result = self._first_call(partial(graph, *arguments), [name, shapes])
            known.add(shapes)
            self.count += 1
            self.seconds += time.perf_counter() - start
            return result

        return run

    def _first_call(self, call: Callable[[], Any], what: list[Any]) -> Any:
        """The result of the call that compiles a graph: loaded if it is kept, kept if not."""
        if self._folder is None:
            return call()
        key = _digest(json.dumps([_environment(), self._facts, what], sort_keys=True, default=str).encode())
        kept = _read(self._folder, key)
        result, written = _slot().compile(call, kept)
        if written is not None:
            _keep(self._folder, key, written)
        self.loaded += kept is not None and written is None
        return result


def graph_folder() -> Path | None:
    """Where graphs are kept: $JANUS_CACHE, else in the user's cache; None if it is set to nothing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    chosen = os.environ.get(FOLDER, f"{base}/janus-tune/graphs")
    return Path(chosen) if chosen else None


def network_graphs(network: JanusConfig) -> Graphs:
    """For a network of these sizes that is not trained; kept on CPU only."""
    return Graphs({"network": asdict(network)}, graph_folder() if device.current() == "CPU" else None)


class _Slot:
    """The folder in which MindSpore looks for the graph it compiles, the same for the whole process."""

    def __init__(self) -> None:
        from mindspore.graph import api

        if not Path(api.entry_script_path or "").is_file():  # `python -c`, a notebook: it would be read
            api.entry_script_path = None
        self._root = Path(tempfile.mkdtemp(prefix="janus-graphs-"))
        atexit.register(shutil.rmtree, self._root, ignore_errors=True)
        self._folder = self._root / "rank_0" / "graph_cache"
        self._folder.mkdir(parents=True)
        self._number = 0  # under which it will look

    def compile(self, call: Callable[[], Any], kept: bytes | None) -> tuple[Any, bytes | None]:
        """The call's result, and the graph that MindSpore wrote. kept: the graph it finds instead."""
        place = self._folder / f"compile_cache_{self._number}.mindir"
        # MindSpore's own check looks only at the entry script's imports; the key takes its place.
        switches = dict.fromkeys(("MS_COMPILER_CACHE_ENABLE", "MS_DEV_FORCE_USE_COMPILE_CACHE"), "1")
        switches["MS_COMPILER_CACHE_PATH"] = str(self._root)
        before = {name: os.environ[name] for name in switches if name in os.environ}
        os.environ.update(switches)
        try:
            if kept is not None:
                place.write_bytes(kept)
            result, written = call(), None
            self._number += 1
            for path in self._folder.glob("compile_cache_*.mindir"):
                if kept is None or path != place:
                    self._number = int(path.stem.rpartition("_")[2]) + 1
                    written = path.read_bytes()
            return result, written
        finally:
            for name in switches:
                del os.environ[name]
            os.environ.update(before)
            for path in self._folder.iterdir():
                path.unlink()


_slot = cache(_Slot)


@cache
def _environment() -> dict[str, object]:
    """Sources, versions and switches that decide every graph."""
    root = Path(janus.__file__).resolve().parent.parent
    return {
        "sources": sources_digest(root / "janus", root / "trainer"),
        "versions": [importlib.metadata.version(name) for name in ("mindspore", "numpy")],
        "switches": {name: value for name, value in os.environ.items() if name.startswith("MS_")},
    }


def sources_digest(*packages: Path) -> str:
    """A digest of every Python file in the packages, however deep."""
    sources = [path for package in packages for path in sorted(package.rglob("*.py"))]
    return _digest(b"".join(_digest(path.read_bytes()).encode() for path in sources))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _read(folder: Path, key: str) -> bytes | None:
    """The kept graph; None if there is none, or a damaged one, which is removed."""
    for path in folder.glob(f"{key}-*.mindir"):
        content = path.read_bytes()
        if path.stem == f"{key}-{_digest(content)}":
            with suppress(OSError):  # a read-only folder that many share
                os.utime(path)
            return content
        with suppress(OSError):
            path.unlink()
    return None


def _keep(folder: Path, key: str, content: bytes) -> None:
    """Write the graph atomically; remove those that have not been used for long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (*folder.glob("*.mindir"), *folder.glob(".tmp-*")):  # the latter of killed runs
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()
        write_file(folder / f"{key}-{_digest(content)}.mindir", lambda tmp: tmp.write_bytes(content))
    except OSError as error:
        click.echo(f"graphs are not kept for the next start: {error} (see {FOLDER})", err=True)
