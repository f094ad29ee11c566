"""Graphs compiled, one process each, two at a time, and what each left behind."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.ascend.audit.dump import ROOT, Node, read_dump

AT_ONCE = 2
SECONDS = 900
"""A graph that takes longer is given up."""
WHOLE = "hwopt_d_after_inline_graph"
"""The dump after kernel selection with called graphs put in place: what will be launched."""
FRONT_END = "hwopt_d_before_optimization_without_backend_graph"
"""The dump before any device's passes."""
_EAGER = 4_000_000_000  # graphs numbered from here on are single operations


@dataclass(frozen=True)
class Graph:
    """What to compile. layers: of Llama and SigLIP, at most; 0: the preset's."""

    name: str
    preset: str
    level: str
    layers: int = 0

    @property
    def label(self) -> str:
        layers = f", {self.layers} layer{'s' * (self.layers > 1)}" if self.layers else ""
        return f"{self.name} ({self.preset}{layers}) {self.level}"


@dataclass(frozen=True)
class Compiled:
    """What is known of a compiled graph.

    nodes: none where there is no whole dump. facts: what the process said of its arrays. words: its last.
    """

    graph: Graph
    nodes: list[Node]
    facts: Mapping[str, Any]
    seconds: float
    words: str


def compile_all(graphs: Iterable[Graph], folder: Path, environment: Mapping[str, str]) -> Iterator[Compiled]:
    """The graphs in order, as they are done. folder: for dumps. environment: of a process that can compile.

    With `standins.environment` they are compiled for Ascend; without the front end alone is asked.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(partial(_compile, folder=folder, environment=environment), graphs)


def _compile(graph: Graph, folder: Path, environment: Mapping[str, str]) -> Compiled:
    dumps = folder / graph.label.replace(" ", "-")
    dumps.mkdir(parents=True)
    simulated = "MS_SIMULATION_LEVEL" in environment
    variables = {
        "PYTHONPATH": str(ROOT),
        "JANUS_CACHE": "",  # what is loaded from there is not compiled
        "MS_DEV_SAVE_GRAPHS": "1",
        "MS_DEV_SAVE_GRAPHS_PATH": str(dumps),
        "MS_DEV_DUMP_IR_PASSES": WHOLE if simulated else FRONT_END,
    }
    options = ["--preset", graph.preset, "--level", graph.level, "--layers", str(graph.layers)]
    command = [sys.executable, "-m", "bench.ascend.audit.graph", graph.name, *options]
    began = time.perf_counter()
    with (dumps / "log").open("w+") as log:
        try:
            done = subprocess.run(
                command if simulated else [*command, "--front-end"],
                env={**environment, **variables},
                cwd=dumps,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                timeout=SECONDS,
            )
            said = done.stdout
        except subprocess.TimeoutExpired:
            said = ""
        log.seek(0)
        words = ([line.strip() for line in log if line.strip()] or ["ended without a word"])[-1]
    seconds = time.perf_counter() - began
    return Compiled(graph, _nodes(dumps), _facts(said), seconds, words)


def _nodes(folder: Path) -> list[Node]:
    """Those of the dumps that the process wrote; none if one breaks off."""
    paths = [path for path in folder.glob("hwopt_*_graph_*.ir") if _number(path) < _EAGER]
    dumps = [read_dump(path) for path in sorted(paths, key=_number)]
    return [node for nodes in dumps for node in nodes] if all(dumps) else []


def _number(path: Path) -> int:
    return int(path.stem.rpartition("graph_")[2].partition("_")[0])


def _facts(said: str) -> dict[str, Any]:
    lines = [line for line in said.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}
