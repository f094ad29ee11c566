"""A row of the table, and the table as Markdown and JSON."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from janus.common.files import write_text

START, END = "<!-- bench:start -->", "<!-- bench:end -->"


@dataclass(frozen=True)
class Target:
    """What a figure must reach. at_least: whether more is better."""

    value: float
    at_least: bool

    def met(self, figure: float) -> bool:
        """Whether the figure reaches it."""
        return figure >= self.value if self.at_least else figure <= self.value

    def shown(self, unit: str) -> str:
        """For the table."""
        return f"{'≥' if self.at_least else '≤'} {number(self.value)}{unit}"


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    what: in words. value: the median over the rounds; None if it could not be measured, then `skipped`
    says why. others: other sides' figures by name. how: how it was measured. detail: for results.json.
    cause: where the time went, as measured, for when the target is missed.
    """

    row: str
    what: str
    target: Target
    value: float | None
    how: str
    unit: str = ""
    others: Mapping[str, float] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)
    cause: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where nothing was measured."""
        return None if self.value is None else self.target.met(self.value)


def at_least(value: float) -> Target:
    """More is better."""
    return Target(value, True)


def at_most(value: float) -> Target:
    """Less is better."""
    return Target(value, False)


def median(values: Iterable[float]) -> float:
    """The middle of the rounds."""
    return statistics.median(values)


def ratio(over: Iterable[float], under: Iterable[float]) -> float:
    """Median of the rounds' ratios: what noise does to a round, it does to both sides."""
    return median(a / b for a, b in zip(over, under, strict=True))


def number(value: float) -> str:
    """Three figures that count: 12,345 · 123 · 1.23 · 0.0123."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def to_json(figures: Sequence[Figure], session: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results.json."""
    return {"session": dict(session), "figures": [{**asdict(f), "met": f.met} for f in figures]}


def from_json(content: Mapping[str, Any]) -> list[Figure]:
    """The figures of results.json."""
    figures = []
    for entry in content["figures"]:
        plain = {name: value for name, value in entry.items() if name != "met"}
        plain["target"] = Target(**plain["target"])
        plain["skipped"] = tuple(plain["skipped"])
        figures.append(Figure(**plain))
    return figures


def table(figures: Sequence[Figure]) -> str:
    """The Markdown table: figure, target, met or not, and the other sides."""
    lines = ["| what | measured | target | | others |", "|---|---|---|---|---|"]
    for figure in figures:
        value = "—" if figure.value is None else f"**{number(figure.value)}{figure.unit}**"
        mark = {True: "met", False: "not met", None: "not measured"}[figure.met]
        others = ", ".join(f"{name} {number(value)}" for name, value in figure.others.items())
        lines.append(f"| {figure.what} | {value} | {figure.target.shown(figure.unit)} | {mark} | {others} |")
    return "\n".join(lines)


def report(figures: Sequence[Figure], session: Mapping[str, Any]) -> str:
    """RESULTS.md."""
    facts = "\n".join(f"- {name}: {value}" for name, value in session.items())
    how = "\n".join(f"- **{figure.what}** — {figure.how}" for figure in figures)
    skipped = sorted({reason for figure in figures for reason in figure.skipped})
    parts = [f"# Results\n\n{facts}", table(figures), f"## How each was measured\n\n{how}"]
    missed = [figure for figure in figures if figure.met is False]
    if missed:
        causes = (f"- **{figure.what}** — {figure.cause or 'cause not measured'}" for figure in missed)
        parts.append("## Targets that are missed, and why\n\n" + "\n".join(causes))
    if skipped:
        parts.append("## Skipped\n\n" + "\n".join(f"- {reason}" for reason in skipped))
    return "\n\n".join(parts) + "\n"


def put_into_readme(readme: str, figures: Sequence[Figure], session: Mapping[str, Any]) -> str:
    """The README with the table between its markers. Raises ValueError if it has none."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"no {START} … {END}")
    origin = f"Measured with `{session['command']}` on {session['machine']}, {session['date']}."
    return f"{before}{START}\n{table(figures)}\n\n{origin}\n{END}{after}"


def write(path: Path, figures: Sequence[Figure], session: Mapping[str, Any]) -> None:
    """RESULTS.md at `path` and results.json beside it, each whole or not there."""
    content = json.dumps(to_json(figures, session), indent=1, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, text in ((path, report(figures, session)), (path.with_name("results.json"), content)):
        write_text(target, text)
