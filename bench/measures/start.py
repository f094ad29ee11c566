"""The row about starting: the same training run, started a second time."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.measures.link import ENVIRONMENT, ROOT
from bench.measures.results import Figure, at_most, median
from bench.measures.workload import PUBLISHED_RATIO, Session


def second_start(session: Session) -> list[Figure]:
    """Seconds from the command to the first step's record: with nothing left over, then a second time."""
    home = session.scratch / "home"
    seconds: dict[str, list[float]] = {"first": [], "second": []}
    graphs: list[float] = []
    for _ in range(session.rounds):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        for name in seconds:
            duration, record = _to_first_step(session, home)
            seconds[name].append(duration)
        graphs.append(record["compile_seconds"])
    ratios = [second / first for first, second in zip(seconds["first"], seconds["second"], strict=True)]
    return [
        Figure(
            "start",
            "second start of the same run, to its first step / first start",
            at_most(0.5),
            median(ratios),
            "`trainer train` of 2 + 2 + 2 samples a step without validation, from the command to the record "
            "of step 1; first with an empty home and no graphs kept, then again.",
            others={f"{name} start, s": median(times) for name, times in seconds.items()},
            cause=f"of the second start {median(graphs):.1f} s are its graphs: loading them, choosing "
            "kernels, and their first results; the rest is imports, checksums and parameters",
            detail={"seconds": seconds, "graphs, second start": graphs},
        )
    ]


def _to_first_step(session: Session, home: Path) -> tuple[float, dict[str, Any]]:
    """Seconds from the command to the first step's record, and the record."""
    ratio = ":".join(str(PUBLISHED_RATIO[task]) for task in ("vqa", "text", "t2i"))
    out = session.scratch / "start-run"
    shutil.rmtree(out, ignore_errors=True)
    command = ["trainer", "train", "--task", "mixed", "--model", session.workload.size]
    command += ["--shards", str(session.workload.shards), "--ratio", ratio, "--batch-size", "6"]
    command += ["--steps", "1000", "--eval-samples", "0", "--out", str(out)]
    environment = {**os.environ, **ENVIRONMENT, "HOME": str(home), "JANUS_CACHE": str(home / "graphs")}
    began = time.perf_counter()
    with (session.scratch / "start.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        while (record := _first_step(out / "metrics.jsonl")) is None:
            if process.poll() is not None:
                raise RuntimeError(
                    f"trainer train ended before its first step; see {session.scratch / 'start.log'}"
                )
            time.sleep(0.05)
        return time.perf_counter() - began, record
    finally:
        process.terminate()
        process.wait()


def _first_step(metrics: Path) -> dict[str, Any] | None:
    """The first step's record, once it is written whole."""
    if not metrics.is_file():
        return None
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    records = (json.loads(line) for line in lines if line.endswith("\n"))
    return next((record for record in records if record["kind"] == "step"), None)
