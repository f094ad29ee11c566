"""The rows of the table, in its order, and what measures each; rows measured together share their sides."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.measures import baseline, etl, reader, start, step
from bench.measures.results import Figure
from bench.measures.workload import Session


@dataclass(frozen=True)
class Measurement:
    """rows: the rows it gives. run: measures those that are wanted."""

    rows: tuple[str, ...]
    run: Callable[[Session, set[str]], list[Figure]]


def _all(measure: Callable[[Session], list[Figure]]) -> Callable[[Session, set[str]], list[Figure]]:
    """A measurement whose rows come together."""
    return lambda session, wanted: [figure for figure in measure(session) if figure.row in wanted]


def _reader(row: str) -> Measurement:
    return Measurement((f"reader-{row}",), _all(lambda session: reader.throughput(session, row)))


MEASUREMENTS = (
    Measurement(("padding", "logits"), _all(step.padding)),
    Measurement(("mixed", "torch", "published", "wait"), step.steps),
    Measurement(("flops",), _all(step.text_rate)),
    *map(_reader, reader.READINGS),
    Measurement(("open", "first-batch", "reader-memory"), _all(reader.opening)),
    Measurement(("etl-images",), _all(etl.pictures)),
    Measurement(("etl-tokens",), _all(etl.tokens)),
    Measurement(("etl-memory",), _all(etl.memory)),
    Measurement(("start",), _all(start.second_start)),
    Measurement(("baseline",), _all(baseline.beside_baseline)),
)

NAMES = tuple(row for measurement in MEASUREMENTS for row in measurement.rows)


def measure(session: Session, names: Iterable[str]) -> Iterable[list[Figure]]:
    """The figures of the named rows, a measurement at a time."""
    wanted = set(names)
    for measurement in MEASUREMENTS:
        if wanted.intersection(measurement.rows):
            yield measurement.run(session, wanted)
