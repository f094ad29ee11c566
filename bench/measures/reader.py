"""Rows about the reader alone, beside webdataset, LitData, mosaicml-streaming and Hugging Face's datasets."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from bench.measures.link import Side, interleave
from bench.measures.results import Figure, Target, at_least, at_most, median, ratio
from bench.measures.workload import Session, Workload, prepare
from bench.sides.readers import ROW_SCHEMA, ROWS
from shards.read import read_pictures


@dataclass(frozen=True)
class Reading:
    """What a row reads. samples: of a round. target: times the fastest peer, in the same rounds."""

    task: str
    samples: int
    target: Target
    what: str
    pixels: str = "webp"


READINGS = {
    "text": Reading("text", 16_000, at_least(4), "text"),
    "t2i": Reading("t2i", 8_000, at_least(4), "t2i"),
    "vqa": Reading("vqa", 2_400, at_least(3), "vqa with raw pictures", "raw"),
    "vqa-coded": Reading("vqa", 2_400, at_least(1), "vqa with coded pictures"),
}
LIBRARIES = ("webdataset", "litdata", "mosaicml", "datasets")
HOW = (
    "Batches of 8 ready for the graphs from a warm page cache, checksums on, {samples:,} samples a round. "
    "Peers read the same rows from their own formats into padded arrays, in the written order, in one "
    "process, unchecked."
)
CODED = " Each holds the same WebP bytes; Pillow decodes them in as many threads as ours."


def throughput(session: Session, row: str) -> list[Figure]:
    """Samples per second of one row."""
    before, reading = len(session.skipped), READINGS[row]
    workload = replace(session.workload, pixels=reading.pixels)
    prepare(workload)
    with ExitStack() as stack:
        ours = _ours(session, workload, reading.task)
        sides = {"ours": stack.enter_context(ours), **_peers(session, stack, workload, row)}
        jobs = {name: _reading(side, reading.samples) for name, side in sides.items()}
        rates = interleave(jobs, session.rounds)
    return [reader_figure(row, rates, tuple(session.skipped[before:]))]


def reader_figure(row: str, rates: Mapping[str, Sequence[float]], skipped: tuple[str, ...]) -> Figure:
    """The row's figure. rates: samples per second of each side, "ours" among them, round by round."""
    medians = {name: median(values) for name, values in rates.items()}
    peers = {name: rate for name, rate in medians.items() if name != "ours"}
    fastest = max(peers, key=lambda name: peers[name], default=None)
    reading = READINGS[row]
    return Figure(
        f"reader-{row}",
        f"samples/s of the reader alone, {reading.what}, ours / the fastest peer",
        reading.target,
        ratio(rates["ours"], rates[fastest]) if fastest else None,
        HOW.format(samples=reading.samples) + (CODED if row == "vqa-coded" else ""),
        "×",
        {f"{name}, samples/s": rate for name, rate in medians.items()},
        skipped,
        {"samples_per_second": dict(rates)},
    )


def _ours(session: Session, workload: Workload, task: str) -> Side:
    return session.ours("our_reader", str(workload.folder), task, workload.pixels)


def _peers(session: Session, stack: ExitStack, workload: Workload, row: str) -> dict[str, Side]:
    """The libraries that are there, each with the task's first training rows."""
    rows, sides = session.scratch / f"{row}-rows.arrow", {}
    longest = export(workload, READINGS[row].task, rows)
    for library in LIBRARIES:
        folder = session.scratch / f"{library}-{row}"
        shutil.rmtree(folder, ignore_errors=True)  # of other rows, from shards that are no more
        side = session.peer("readers", library, str(rows), str(folder), str(longest))
        if side:
            sides[library] = stack.enter_context(side)
    return sides


def export(workload: Workload, task: str, path: Path) -> int:
    """Write a task's first training rows for peers, each with its picture; gives the most tokens of a row."""
    shards = workload.open()
    rows = shards.rows("train", task)
    files = [read_pictures(workload.shards / entry.path) for entry in shards.manifest.pictures]
    pictures = {name: data for file in files for name, data in zip(file.names, file.data, strict=True)}
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, ROW_SCHEMA) as writer:
        for sample in islice(rows.unchecked(), ROWS):
            shown = [bytes(pictures[name]) for name in sample.understood]
            row = {
                "input_ids": sample.input_ids,
                "supervised": sample.supervised[:, :2].tolist(),
                "image" if workload.pixels == "raw" else "coded": shown[0] if shown else None,
                "image_tokens": sample.image_tokens if sample.image_tokens.size else None,
            }
            writer.write_batch(pa.RecordBatch.from_pylist([row], ROW_SCHEMA))
    return int(rows.num_tokens.max())


def _reading(side: Side, samples: int) -> Callable[[], float]:
    def read() -> float:
        return side.do("read", samples=samples)

    return read


def opening(session: Session) -> list[Figure]:
    """What it takes until the first batch, in fresh processes."""
    seen: list[dict[str, Any]] = []
    for _ in range(session.rounds):
        with _ours(session, session.workload, "vqa") as side:
            seen.append(side.about)
    rows: list[tuple[str, str, Target, str, float, str]] = [
        ("open", "reader: open", at_most(0.4), " s", 1.0, "open"),
        ("first-batch", "reader: first batch", at_most(20), " ms", 1000.0, "first_batch"),
        ("reader-memory", "reader: memory", at_most(200), " MB", 1.0, "megabytes"),
    ]
    how = (
        "A fresh process without MindSpore: shards and tokenizer opened and checked against the manifest, "
        "rows and shapes chosen; then a batch of 8 vqa samples; then the process's resident memory, mapped "
        "pages included."
    )
    return [
        Figure(row, what, target, factor * median(about[name] for about in seen), how, unit)
        for row, what, target, unit, factor, name in rows
    ]
