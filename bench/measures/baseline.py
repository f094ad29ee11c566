"""The row about what a device did before: losses, memory and time of a fixed run, beside its baseline.

The run: 20 mixed steps of 5:1:4 of `tiny`, with the sample's weights and data, each device in the dtype that
it takes by itself. `bench/baselines/NAME.json` holds what the first such run on a device gave; NAME is the
device's own name. Sums round as processor, MindSpore and CANN cut them: where these are the same as in the
baseline, so are the losses, to the bit, memory within 1 % and time within 15 %. Otherwise only losses are
compared, and within a bound: a device of another name is compared with every baseline there is.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from bench.measures.link import ENVIRONMENT, ROOT
from bench.measures.results import Figure, at_most
from bench.measures.workload import Session, run
from janus.common.files import write_text

FOLDER = ROOT / "bench" / "baselines"
STEPS = 20
MEMORY, TIME = 0.01, 0.15
LOSS = {"float32": 1e-4, "bfloat16": 2e-2}
"""How far losses may be apart, relative, where sums round otherwise. Op by op a CPU is off by 1e-7."""


@dataclass(frozen=True)
class Baseline:
    """One run.

    facts: `janus.device.facts` and the dtype. seconds: of the fastest step, as what else computes only adds.
    memory: peak bytes, on the device or of the process on a CPU.
    """

    facts: Mapping[str, str]
    losses: list[float]
    seconds: float
    memory: int

    @classmethod
    def of(cls, facts: Mapping[str, str], steps: list[Mapping[str, Any]]) -> Self:
        """From the step records of metrics.jsonl. The first step compiles, so it has no time."""
        times = [record["step_seconds_median"] for record in steps if record["step_seconds_median"]]
        memory = steps[-1].get("peak_device_memory", steps[-1]["peak_memory"])
        return cls(facts, [record["loss"] for record in steps], min(times), memory)

    @property
    def path(self) -> Path:
        """Where the device's baseline lies."""
        return FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', self.facts['device'].lower()).strip('-')}.json"

    def shares(self, before: Self) -> dict[str, float]:
        """How much of what is allowed each quantity differs from a run before: 1 is all of it."""
        loss = max(abs(a - b) / b for a, b in zip(self.losses, before.losses, strict=True))
        if self.facts != before.facts:
            bound = max(LOSS[own.facts["dtype"]] for own in (self, before))
            return {f"losses, {before.path.stem}": loss / bound}
        return {
            "losses": 0.0 if self.losses == before.losses else float("inf"),
            "memory": abs(self.memory / before.memory - 1) / MEMORY,
            "time": max(0.0, self.seconds / before.seconds - 1) / TIME,
        }


def beside_baseline(session: Session) -> list[Figure]:
    """Run, compare with the baselines that there are, and write this device's if it has none."""
    found = _run(session.scratch / "baseline")
    known = [Baseline(**json.loads(path.read_text())) for path in sorted(FOLDER.glob("*.json"))]
    own = [before for before in known if before.path == found.path]
    shares: dict[str, float] = {}
    for before in own or known:
        shares |= found.shares(before)
    if not own:
        FOLDER.mkdir(exist_ok=True)
        write_text(found.path, json.dumps(asdict(found), indent=1) + "\n")
    return [
        Figure(
            "baseline",
            f"furthest from {found.path.stem}'s baseline, in what is allowed",
            at_most(1.0),
            max(shares.values(), default=None),
            f"{STEPS} mixed steps of `tiny` on the embedded sample: losses exactly, memory within 1 %, time "
            "within 15 %; on a device that has no baseline yet, losses alone, beside those of others.",
            others=shares,
            skipped=() if shares else (f"baseline: {found.path.name} is the first one there is",),
            detail=asdict(found),
        )
    ]


def _run(folder: Path) -> Baseline:
    """Make sample and shards if they are missing, and train in a process of its own."""
    data, shards, out = folder / "data", folder / "shards", folder / "run"
    if not shards.is_dir():
        run("pipelines", "sample", "--data", str(data))
        places = {"data": data, "work": folder / "work", "out": shards}
        places |= {"tokenizer": data / "tokenizer", "model": data / "tiny"}
        run("pipelines", "build", *(word for name in places for word in (f"--{name}", str(places[name]))))
    shutil.rmtree(out, ignore_errors=True)
    options = ["--task", "mixed", "--model", str(data / "tiny"), "--shards", str(shards), "--out", str(out)]
    options += ["--steps", str(STEPS), "--learning-rate", "1e-3", "--eval-samples", "0", "--save-every", "0"]
    environment = {**os.environ, **ENVIRONMENT, "JANUS_CACHE": ""}
    command = [sys.executable, "-m", "trainer", "train", *options]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ask = "from janus import device as d; u = d.use(); print(json.dumps(d.facts() | {'dtype': u.dtype}))"
    facts = subprocess.run(
        [sys.executable, "-c", f"import json; {ask}"],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )
    return Baseline.of(
        json.loads(facts.stdout), [record for record in map(json.loads, lines) if record["kind"] == "step"]
    )
