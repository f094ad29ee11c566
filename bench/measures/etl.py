"""Rows about the pipeline: pictures, tokenising, and memory as the data grow."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.measures.link import ROOT, interleave
from bench.measures.results import Figure, at_least, at_most, median, ratio
from bench.measures.workload import Session, run, write_larger

QUESTIONS, PICTURES = 100_000, 1_200
"""Rows of the larger copy of the data: so many that starting the processes does not decide."""

INTERVAL = 0.05
"""Seconds between two looks at a command's memory."""


def pictures(session: Session) -> list[Figure]:
    """Ingested pictures to published shards, beside bare Pillow on the same encoded pictures."""
    scratch = session.scratch / "etl-pictures"
    work, out = scratch / "work", scratch / "shards"
    build = ["build", "--data", str(_larger(session, QUESTIONS, PICTURES)), "--source", "medical-vqa"]
    build += ["--work", str(work), "--out", str(out), *_tokenizer(session)]
    run("pipelines", *build)  # its first two stages are kept, and skipped from now on

    stages: list[dict[str, float]] = []

    def ours() -> float:
        for folder in (work / "images", work / "write", out):
            shutil.rmtree(folder)
        began = time.perf_counter()
        stages.append(_stage_seconds(run("pipelines", *build)))
        return time.perf_counter() - began

    encoded = str(work / "ingest" / "understanding.images.arrow")
    seconds = _in_turns(session, ours, "Pillow", "bare_images", encoded)
    return [
        Figure(
            "etl-images",
            "ETL, pictures to prepared shards / bare Pillow decode and resize",
            at_least(0.85),
            ratio(*reversed(seconds.values())),
            f"`pipelines build` from {PICTURES:,} ingested pictures (VQA-RAD's, repeated) to published "
            "shards: stages images and write, ingest and tokenize found done; beside a program that only "
            "decodes the same bytes and resizes them (bicubic, same size) over all cores and keeps nothing. "
            "Whole commands. Reading the raw files is another stage.",
            others=_rates(seconds, PICTURES, "pictures/s"),
            detail={"seconds": seconds, "stages": stages},
            cause=_where_time_goes(stages, seconds),
        )
    ]


def _stage_seconds(said: str) -> dict[str, float]:
    """What a build says of its stages: seconds by label."""
    return {label: float(taken) for label, taken in re.findall(r"^([\w ]+): .* in ([\d.]+) s \(", said, re.M)}


def _where_time_goes(stages: list[dict[str, float]], seconds: dict[str, list[float]]) -> str:
    """Medians of our stages, of the whole command, and of the peer's."""
    ours, peer = (median(times) for times in seconds.values())
    known = {name: median(each[name] for each in stages) for name in ("images understanding", "write")}
    rest = ours - sum(known.values())
    return (
        f"of {ours:.1f} s, decoding and scaling takes {known['images understanding']:.1f} s, writing the "
        f"shards with their hashes {known['write']:.1f} s, starting the command and its workers and finding "
        f"the other stages done {rest:.1f} s; the whole of the peer takes {peer:.1f} s and keeps nothing"
    )


def tokens(session: Session) -> list[Figure]:
    """The tokenize stage beside the tokenizer's own batch call on the same texts."""
    work = _ingested(session, QUESTIONS, PICTURES)
    file = str(session.workload.tokenizer / "tokenizer.json")

    def ours() -> float:
        shutil.rmtree(work / "tokenize", ignore_errors=True)
        return _seconds("pipelines", "tokenize", "--work", str(work), *_tokenizer(session))

    seconds = _in_turns(session, ours, "tokenizer", "bare_tokens", file, str(work / "ingest"))
    rows = QUESTIONS + PICTURES
    return [
        Figure(
            "etl-tokens",
            "ETL, tokenising / the tokenizer's own batch call",
            at_least(0.8),
            ratio(*reversed(seconds.values())),
            f"`pipelines tokenize` over {rows:,} rows (PubMedQA's and VQA-RAD's, repeated) beside a program "
            "that reads the same rows and gives their texts to `encode_batch_fast` at once, all cores; whole "
            "commands. The stage encodes a text that many rows share, as the system text is, once a batch.",
            others=_rates(seconds, rows, "rows/s"),
            detail={"seconds": seconds},
        )
    ]


def memory(session: Session) -> list[Figure]:
    """Peak memory of all stages but the VQ encoder, on the data and on ten times the data."""
    peaks: dict[str, list[float]] = {"1": [], "10": []}
    sizes = {"1": (QUESTIONS // 10, PICTURES // 10), "10": (QUESTIONS, PICTURES)}
    for _ in range(min(session.rounds, 1)):  # memory does not vary as time does
        for name, (questions, pictures) in sizes.items():
            raw = _larger(session, questions, pictures)
            folder = session.scratch / f"memory-{name}"
            shutil.rmtree(folder, ignore_errors=True)
            peaks[name].append(_peak_megabytes(raw, folder, session))
            shutil.rmtree(folder)
    return [
        Figure(
            "etl-memory",
            "ETL memory, data ten times as many / once",
            at_most(1.2),
            median(peaks["10"]) / median(peaks["1"]),
            f"`pipelines build` of {sizes['1'][0]:,} questions and {sizes['1'][1]:,} pictures, and of ten "
            "times as many; the largest sum of anonymous memory of the command and its workers, looked at "
            f"every {1000 * INTERVAL:.0f} ms. One run each.",
            others={"once, MB": median(peaks["1"]), "ten times, MB": median(peaks["10"])},
        )
    ]


def _larger(session: Session, questions: int, pictures: int) -> Path:
    raw = session.scratch / f"raw-{questions}-{pictures}"
    write_larger(session.workload.raw, raw, questions, pictures)
    return raw


def _ingested(session: Session, questions: int, pictures: int) -> Path:
    """A work folder whose ingest stage has run."""
    raw, work = _larger(session, questions, pictures), session.scratch / "etl-work"
    run("pipelines", "ingest", "--data", str(raw), "--work", str(work))
    return work


def _tokenizer(session: Session) -> list[str]:
    return ["--tokenizer", str(session.workload.tokenizer)]


def _in_turns(
    session: Session, ours: Callable[[], float], peer: str, side: str, *arguments: str
) -> dict[str, list[float]]:
    """Seconds of each round: a whole command of ours, and the peer's program."""
    return interleave(
        {"ours": ours, peer: lambda: _seconds(f"bench.sides.{side}", *arguments)}, session.rounds
    )


def _seconds(module: str, *arguments: str) -> float:
    began = time.perf_counter()
    run(module, *arguments)
    return time.perf_counter() - began


def _rates(seconds: dict[str, list[float]], count: int, unit: str) -> dict[str, float]:
    return {f"{name}, {unit}": count / median(times) for name, times in seconds.items()}


def _peak_megabytes(raw: Path, folder: Path, session: Session) -> float:
    """The build's peak, its processes together."""
    command = ["pipelines", "build", "--data", str(raw), "--work", str(folder / "work")]
    command += ["--out", str(folder / "shards"), "--model", session.workload.size, *_tokenizer(session)]
    with (session.scratch / "memory.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=log, stderr=log)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(_anonymous(pid) for pid in _family(process.pid)))
        time.sleep(INTERVAL)
    if process.returncode:
        raise RuntimeError(f"pipelines build failed; see {session.scratch / 'memory.log'}")
    return peak


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                continue  # it has just ended
    return found


def _anonymous(pid: int) -> float:
    """Megabytes that only swapping could take from it: mapped files not counted."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = (line.split() for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem")))
    return sum(int(line[1]) for line in lines) / 1024
