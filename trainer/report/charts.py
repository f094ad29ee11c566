"""The charts of a training report: which ones a run's numbers give, and how each is drawn.

A chart is drawn twice, for light and for dark pages; the light one is also the PNG beside the page.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from janus.prompts import TASK_ORDER
from trainer.report.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUN_COLORS = 6
SMOOTH_FROM = 60
"""Points from which on a line is smoothed, with the points themselves faintly behind it."""


@dataclass(frozen=True)
class Theme:
    """Colours of one kind of page; `lines` in the order of runs, as `report.css` has them."""

    panel: str
    ink: str
    muted: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Theme(
    *("#ffffff", "#1c2127", "#5a636e", "#e6e6e1"),
    ("#1f5fbf", "#b4520f", "#0f7466", "#8a3ea8", "#a3262a", "#6b6a10"),
)
DARK = Theme(
    *("#1b1e24", "#e7e9ed", "#9ba4b1", "#2f343d"),
    ("#8ab6ff", "#f0a36b", "#5fcdbb", "#d19bea", "#f08f8f", "#d3cf6a"),
)


@dataclass(frozen=True)
class Line:
    """One run's numbers in a chart; above: how many runs are drawn over it.

    points: few and far between, drawn as marks.
    """

    run: int
    label: str
    steps: Sequence[int]
    values: Sequence[float]
    points: bool = False
    above: int = 0


@dataclass(frozen=True)
class Chart:
    """A chart: `name` is its file's; scale is linear, log, percent or exact (never smoothed)."""

    name: str
    title: str
    lines: tuple[Line, ...]
    scale: str = "linear"

    @property
    def words(self) -> str:
        """What it shows, for those who cannot see it."""
        ends = (f"{x.label} from {x.values[0]:.4g} to {x.values[-1]:.4g}" for x in self.lines)
        return f"{self.title}: {'; '.join(ends)}"


_STEP_CHARTS = (
    ("learning_rate", "Learning rate", "exact", 1),
    ("grad_norm", "Gradient norm before clipping", "log", 1),
    ("samples_per_second", "Samples per second", "linear", 1),
    ("tokens_per_second", "Real tokens per second", "linear", 1),
    ("seconds", "Seconds per step", "log", 1),
    ("padding", "Padding, share of token slots", "percent", 1),
    ("data_wait", "Waiting for data, share of time", "percent", 1),
    ("peak_memory", "Peak memory of the process, GiB", "linear", 2**-30),
    ("peak_device_memory", "Peak memory of the device, GiB", "linear", 2**-30),
    ("flops_per_second", "GFLOP per second", "linear", 1e-9),
)
"""Number of a step's record, title, scale, and what a value is multiplied with."""


def charts(runs: Sequence[History], names: Sequence[str]) -> Iterator[Chart]:
    """Every chart that any of the runs has numbers for."""
    yield from _loss_charts(runs, names)
    for name, title, scale, factor in _STEP_CHARTS:
        if lines := _lines(runs, names, "step", name, factor):
            yield Chart(name.replace("_", "-"), title, lines, scale)
    for name in sorted(name for kind, name in _all_series(runs) if kind == "eval"):
        if name.startswith("metrics/") and not name.endswith("/questions"):
            short = name.removeprefix("metrics/")
            title = short.replace("_", " ").replace("/", ", ")
            yield Chart(f"eval-{_file_name(short)}", title, _lines(runs, names, "eval", name))


def _loss_charts(runs: Sequence[History], names: Sequence[str]) -> Iterator[Chart]:
    paths = {name for _, name in _all_series(runs) if name.startswith("loss_per_task/")}
    tasks = {path.split("/", 1)[1] for path in paths}
    for task in sorted(tasks, key=lambda task: (*TASK_ORDER, task).index(task)):
        training = _lines(runs, names, "step", f"loss_per_task/{task}")
        validation = _lines(runs, names, "validation", f"loss_per_task/{task}")
        yield Chart(f"loss-{_file_name(task)}", f"Loss, {task}", (*training, *validation))


def _all_series(runs: Sequence[History]) -> set[tuple[str, str]]:
    return {key for run in runs for key in run.series}


def _lines(
    runs: Sequence[History], names: Sequence[str], kind: str, name: str, factor: float = 1
) -> tuple[Line, ...]:
    """The number of that name in each run that has it. What is not recorded at each step is points."""
    what = {"step": "training", "validation": "validation", "eval": "evaluation"}[kind]
    lines = []
    for i, run in enumerate(runs):
        if (kind, name) in run.series:
            steps, values = run.series[kind, name]
            label = what if len(runs) == 1 else names[i]
            above = min(3, len(runs) - 1 - i)
            lines.append(Line(i, label, steps, [factor * x for x in values], kind != "step", above))
    return tuple(lines)


def _file_name(text: str) -> str:
    """The text with nothing in it that a file's name should not have."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)


def draw(chart: Chart, theme: Theme) -> bytes:
    """The chart as PNG."""
    from matplotlib.figure import Figure

    figure = Figure((5.6, 3.3), dpi=160, layout="constrained", facecolor=theme.panel)
    axes = figure.add_subplot(facecolor=theme.panel)
    for line in chart.lines:
        (_draw_points if line.points else _draw_line)(axes, line, theme, chart.scale == "exact")
    _draw_frame(axes, chart, theme)
    _draw_legend(axes, chart, theme)
    title = {"fontsize": 11.5, "fontweight": "bold", "color": theme.ink, "parse_math": False}
    figure.suptitle(chart.title, x=0.02, ha="left", **title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_line(axes: Axes, line: Line, theme: Theme, exact: bool) -> None:
    color = theme.lines[line.run % RUN_COLORS]
    style = ("-", "--", ":")[line.run // RUN_COLORS % 3]
    width = 1.6 + 0.7 * line.above  # so that one under another is seen
    values, mark = np.asarray(line.values, np.float64), "o" if len(line.steps) == 1 else None
    if not exact and len(values) >= SMOOTH_FROM:
        axes.plot(line.steps, values, color=color, linewidth=0.8, alpha=0.3)
        values = smooth(values)
    axes.plot(line.steps, values, color=color, linestyle=style, linewidth=width, marker=mark)


def _draw_points(axes: Axes, line: Line, theme: Theme, exact: bool) -> None:
    """Marks; joined where there are more than a first and a last, which a line between would misstate."""
    color = theme.lines[line.run % RUN_COLORS]
    axes.plot(
        line.steps,
        line.values,
        color=color,
        linestyle=":" if len(line.steps) > 2 else "",
        linewidth=1.2,
        marker="o",
        markersize=6.5,
        markeredgecolor=theme.panel,
        zorder=4,
    )


def smooth(array: np.ndarray) -> np.ndarray:
    """The mean around each value, over a thirtieth of all."""
    half = max(1, len(array) // 60)
    sums = np.concatenate([[0.0], np.cumsum(array)])
    at = np.arange(len(array))
    lo, hi = np.maximum(at - half, 0), np.minimum(at + half + 1, len(array))
    return (sums[hi] - sums[lo]) / (hi - lo)


def _draw_frame(axes: Axes, chart: Chart, theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.set_xlabel("step", fontsize=10, color=theme.muted)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if chart.scale == "log" and all(min(line.values) > 0 for line in chart.lines):
        axes.set_yscale("log")
    elif chart.scale == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", colors=theme.muted, labelsize=10, length=0)


def _draw_legend(axes: Axes, chart: Chart, theme: Theme) -> None:
    """A line for each run (or `training`), and one mark for what is validation."""
    from matplotlib.lines import Line2D

    lines = [line for line in chart.lines if not line.points]
    points = [line for line in chart.lines if line.points]
    handles = [Line2D([], [], color=theme.lines[x.run % RUN_COLORS]) for x in lines or points]
    labels = [x.label for x in lines or points]
    if lines and points:
        handles.append(Line2D([], [], color=theme.muted, linestyle="", marker="o"))
        labels.append("validation")
    if len(handles) < 2:
        return
    legend = axes.legend(
        handles, [f" {label}" for label in labels], fontsize=9.5, frameon=False
    )  # a leading _ would hide it
    for text in legend.get_texts():
        text.set(color=theme.ink, parse_math=False)
