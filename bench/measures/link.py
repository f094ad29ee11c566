"""A side of a comparison: a process that does named jobs when told to, one line of JSON each way.

The child's real standard output carries the answers; whatever libraries print goes to its log. Standard
library only: a peer's interpreter may hold nothing of ours.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TextIO

ROOT = Path(__file__).resolve().parents[2]
Job = Callable[..., Any]

THREADS = 2
"""Every side computes with the same threads."""

ENVIRONMENT = {f"{name}_NUM_THREADS": str(THREADS) for name in ("OMP", "MKL", "OPENBLAS")}


class SideError(Exception):
    """A side that could not be started or that died; the message is its last words."""


class Side:
    """A running `python -m bench.sides.<name> ARGUMENTS`, warm from one job to the next."""

    def __init__(self, name: str, arguments: list[str], log: Path, python: str = sys.executable) -> None:
        """Start it and wait until it is ready. Raises SideError if it does not come up."""
        self.name, self._log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [python, "-m", f"bench.sides.{name}", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self.about = self._answer()

    def do(self, job: str, **arguments: Any) -> Any:
        """What the job gives. Raises SideError if the process died."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([job, arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words are read below
        return self._answer()

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            words = self._log.read_text(errors="replace").strip().splitlines()
            raise SideError(
                f"{self.name}: {words[-1] if words else 'ended without a word'} (see {self._log})"
            )
        return json.loads(line)


def serve(start: Callable[[list[str]], tuple[Mapping[str, Any], Mapping[str, Job]]]) -> None:
    """The child's side: `start(arguments)` gives what to say about itself and the jobs by name."""
    answers = _keep_stdout()
    about, jobs = start(sys.argv[1:])
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        job, arguments = json.loads(line)
        print(json.dumps(jobs[job](**arguments)), file=answers, flush=True)


def _keep_stdout() -> TextIO:
    """The real standard output; anything else that prints goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def interleave(jobs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """What every job gave in every round: A B C, C B A, A B C, …

    The way there and back: a job whose process has just rested is slower, and none may always come after
    the same one.
    """
    results: dict[str, list[Any]] = {name: [] for name in jobs}
    for turn in range(rounds):
        for name in list(jobs)[:: -1 if turn % 2 else 1]:
            results[name].append(jobs[name]())
    return results
