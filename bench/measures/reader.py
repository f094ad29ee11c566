"""Rows about the reader alone, beside webdataset, LitData, mosaicml-streaming and Hugging Face's datasets."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from bench.measures.link import Side, interleave
from bench.measures.results import Figure, Target, at_least, at_most, median, ratio
from bench.measures.session import Session

LIBRARIES = ("webdataset", "litdata", "mosaicml", "datasets")
SAMPLES = {"text": 16_000, "t2i": 8_000, "vqa": 2_400}
TARGETS = {"text": at_least(4), "t2i": at_least(4), "vqa": at_least(3)}
"""Times the fastest peer, in the same rounds."""
HOW = (
    "Batches of 8 ready for the graphs from a warm page cache, row checksums on, {samples:,} samples a "
    "round. Peers read the same rows from their own formats into padded arrays, in the written order, in one "
    "process, unchecked."
)


def throughput(session: Session, task: str) -> list[Figure]:
    """Samples per second of one task."""
    before = len(session.skipped)
    with ExitStack() as stack:
        ours = stack.enter_context(session.ours("our_reader", str(session.workload.folder), task))
        peers = _peers(session, stack, task)
        jobs = {name: _reading(side, SAMPLES[task]) for name, side in {"ours": ours, **peers}.items()}
        rates = interleave(jobs, session.rounds)
    return [reader_figure(task, rates, tuple(session.skipped[before:]))]


def reader_figure(task: str, rates: Mapping[str, Sequence[float]], skipped: tuple[str, ...]) -> Figure:
    """The row of a task. rates: samples per second of each side, "ours" among them, round by round."""
    medians = {name: median(values) for name, values in rates.items()}
    peers = {name: rate for name, rate in medians.items() if name != "ours"}
    fastest = max(peers, key=lambda name: peers[name], default=None)
    what = f"{task} with pictures" if task == "vqa" else task
    return Figure(
        f"reader-{task}",
        f"samples/s of the reader alone, {what}, ours / the fastest peer",
        TARGETS[task],
        ratio(rates["ours"], rates[fastest]) if fastest else None,
        HOW.format(samples=SAMPLES[task]),
        "×",
        {f"{name}, samples/s": rate for name, rate in medians.items()},
        skipped,
        {"samples_per_second": dict(rates)},
    )


def _peers(session: Session, stack: ExitStack, task: str) -> dict[str, Side]:
    """The libraries that are there, each with the rows of the task's first training shard."""
    shard = session.workload.shards / "train" / f"{task}-00000.arrow"
    rows = session.workload.open().rows("train", task)
    sides = {}
    for library in LIBRARIES:
        folder = session.scratch / f"{library}-{task}"
        side = session.peer("readers", library, str(shard), str(folder), str(int(rows.num_tokens.max())))
        if side:
            sides[library] = stack.enter_context(side)
    return sides


def _reading(side: Side, samples: int) -> Callable[[], float]:
    def read() -> float:
        return side.do("read", samples=samples)

    return read


def opening(session: Session) -> list[Figure]:
    """What it takes until the first batch, in fresh processes."""
    seen: list[dict[str, Any]] = []
    for _ in range(session.rounds):
        with session.ours("our_reader", str(session.workload.folder), "vqa") as side:
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
