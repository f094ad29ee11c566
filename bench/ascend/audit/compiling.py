"""Graphs compiled, one process each, and what each left behind."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

from bench.ascend.audit.dump import ROOT, Node, read_dump

SECONDS = 900
"""A graph that takes longer is given up."""
WHOLE = "hwopt_d_after_inline_graph"
"""The dump after kernel selection with called graphs put in place: what will be launched."""
FRONT_END = "hwopt_d_before_optimization_without_backend_graph"
"""The dump before any device's passes."""
_EAGER = 4_000_000_000  # graphs numbered from here on are single operations


@dataclass(frozen=True)
class Graph:
    """What to compile. layers: of Llama and SigLIP, at most; 0: the preset's. dtype: of training."""

    name: str
    preset: str
    level: str
    layers: int = 0
    dtype: str = "bfloat16"

    @property
    def label(self) -> str:
        """The graph in words, as the table names it."""
        layers = f", {self.layers} layer{'s' * (self.layers > 1)}" if self.layers else ""
        return f"{self.name} ({self.preset}{layers}, {self.dtype}) {self.level}"


@dataclass(frozen=True)
class Compiled:
    """What is known of a compiled graph.

    nodes: none where there is no whole dump. facts: what the process said of itself. words: its last.
    """

    graph: Graph
    nodes: list[Node]
    facts: Mapping[str, Any]
    seconds: float
    words: str


def compile_all(
    graphs: Iterable[Graph],
    folder: Path,
    environment: Mapping[str, str],
    front_end: bool = False,
    at_once: int = 1,
) -> Iterator[Compiled]:
    """The graphs in order, as they are done, `at_once` of them at a time. folder: for dumps and logs.

    environment: of a process that has MindSpore's Ascend compiler. front_end: of any; no device's passes.
    """
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(partial(_compile, folder, environment, front_end), graphs)


def _compile(folder: Path, environment: Mapping[str, str], front_end: bool, graph: Graph) -> Compiled:
    own = folder / re.sub(r"\W+", "-", graph.label)
    own.mkdir(parents=True)
    options = {name: str(value) for name, value in asdict(graph).items() if name != "name"}
    command = [sys.executable, "-m", "bench.ascend.audit.graph", graph.name]
    command += [f"--{name}={value}" for name, value in options.items()]
    began = time.perf_counter()
    path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]  # CANN's set_env.sh sets it
    dumped = {**environment, "PYTHONPATH": ":".join(path), **dumping(own, FRONT_END if front_end else WHOLE)}
    said, words = _run([*command, *["--front-end"] * front_end], dumped, own)
    return Compiled(graph, nodes_in(own), _facts(said), time.perf_counter() - began, words)


def dumping(folder: Path, which: str = WHOLE) -> dict[str, str]:
    """Variables of a process that dumps its graphs into `folder`. Read when MindSpore is imported."""
    return {
        "JANUS_CACHE": "",  # what is loaded from there is not compiled
        "MS_DEV_SAVE_GRAPHS": "1",
        "MS_DEV_SAVE_GRAPHS_PATH": str(folder),
        "MS_DEV_DUMP_IR_PASSES": which,
    }


def nodes_in(folder: Path) -> list[Node]:
    """The nodes of the graphs that a process dumped; none if it dumped nothing, or a dump breaks off."""
    paths = [path for path in folder.glob("hwopt_*_graph_*.ir") if _number(path) < _EAGER]
    dumps = [read_dump(path) for path in sorted(paths, key=_number)]
    return [node for nodes in dumps for node in nodes] if all(dumps) else []


def _run(command: list[str], environment: Mapping[str, str], folder: Path) -> tuple[str, str]:
    """What the process said, and the last words of its log, however it ended."""
    with (folder / "log").open("w+") as log:
        try:
            done = subprocess.run(
                command, env=environment, cwd=folder, stdout=PIPE, stderr=log, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return "", f"not done after {SECONDS} s"
        log.seek(0)
        errors = [line.strip() for line in log if re.match(r"[\w.]*Error: ", line)]
        return done.stdout, (errors or [f"ended with {done.returncode}"])[-1]


def _number(path: Path) -> int:
    return int(path.stem.rpartition("graph_")[2].partition("_")[0])


def _facts(said: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for line in said.splitlines():
        if line.startswith("{"):
            facts |= json.loads(line)
    return facts
