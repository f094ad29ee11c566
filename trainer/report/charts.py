"""The charts of a training report: which ones the numbers of runs give, and how each is drawn.

A chart is one PNG on a light ground of its own, so that it is legible on light and dark pages alike.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from janus.prompts import TASK_ORDER
from trainer.report.records import History

GROUND, INK, MUTED, GRID = "#fbfbf9", "#1c2127", "#5a636e", "#e6e6e1"
RUN_COLORS = ("#1f5fbf", "#b4520f", "#0f7466", "#8a3ea8", "#a3262a", "#6b6a10")
"""One for each run in turn; `report.css` repeats these and GROUND."""

SMOOTH_FROM = 60  # a curve with this many points is smoothed, the points themselves faintly behind it


@dataclass(frozen=True)
class Line:
    """One run's numbers in a chart. points: draw marks, because the steps are far apart."""

    run: int
    label: str
    steps: Sequence[int]
    values: Sequence[float]
    points: bool = False

    @property
    def color(self) -> str:
        return RUN_COLORS[self.run % len(RUN_COLORS)]


@dataclass(frozen=True)
class Chart:
    """name: part of the PNG's file name. scale: linear, log, percent or exact (never smoothed)."""

    name: str
    title: str
    lines: tuple[Line, ...]
    scale: str = "linear"

    @property
    def description(self) -> str:
        """What the chart shows, for readers who cannot see it."""
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
"""Name in the step records, title, scale, and the factor from the recorded unit to the one drawn."""


def charts(runs: Sequence[History]) -> Iterator[Chart]:
    """Every chart that any of the runs has numbers for."""
    recorded = {key for run in runs for key in run.series}
    tasks = {name.split("/", 1)[1] for _, name in recorded if name.startswith("loss_per_task/")}
    for task in sorted(tasks, key=lambda task: (*TASK_ORDER, task).index(task)):
        name = f"loss_per_task/{task}"
        lines = _lines(runs, "step", name) + _lines(runs, "validation", name)
        yield Chart(f"loss-{_file_name(task)}", f"Loss, {task}", lines)
    for name, title, scale, factor in _STEP_CHARTS:
        if ("step", name) in recorded:
            yield Chart(_file_name(name), title, _lines(runs, "step", name, factor), scale)
    for kind, name in sorted(recorded):
        if kind == "eval" and name.startswith("metrics/") and not name.endswith("/questions"):
            short = name.removeprefix("metrics/")
            title = short.replace("_", " ").replace("/", ", ")
            yield Chart(f"eval-{_file_name(short)}", title, _lines(runs, kind, name))


def _lines(runs: Sequence[History], kind: str, name: str, factor: float = 1) -> tuple[Line, ...]:
    """One line for each run that recorded the number; marks where it is not recorded at each step."""
    only, lines = {"step": "training", "validation": "validation", "eval": "evaluation"}[kind], []
    for i, run in enumerate(runs):
        if steps_values := run.series.get((kind, name)):
            label = only if len(runs) == 1 else run.name
            lines.append(
                Line(i, label, steps_values[0], [factor * x for x in steps_values[1]], kind != "step")
            )
    return tuple(lines)


def _file_name(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)


def draw(chart: Chart) -> bytes:
    """The chart as PNG."""
    figure = Figure((5.6, 3.3), dpi=160, layout="constrained", facecolor=GROUND)
    axes = figure.add_subplot(facecolor=GROUND)
    curves = [line for line in chart.lines if not line.points]
    points = [line for line in chart.lines if line.points]
    for i, line in enumerate(curves):
        _draw_curve(axes, line, min(3, len(curves) - 1 - i), chart.scale == "exact")
    style: dict[str, Any] = {"lw": 1.2, "ms": 6.5, "mec": GROUND, "zorder": 4}
    for line in points:  # joined from three on: a line between a first and a last would mislead
        axes.plot(line.steps, line.values, "o:" if len(line.steps) > 2 else "o", color=line.color, **style)
    _draw_frame(axes, chart)
    _draw_legend(axes, curves, points)
    title = {"fontsize": 11.5, "fontweight": "bold", "color": INK, "parse_math": False}
    figure.suptitle(chart.title, x=0.02, ha="left", **title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_curve(axes: Axes, line: Line, above: int, exact: bool) -> None:
    """above: curves drawn over this one; it is wider the more there are, to be seen below them."""
    values = np.asarray(line.values, np.float64)
    if not exact and len(values) >= SMOOTH_FROM:
        axes.plot(line.steps, values, color=line.color, lw=0.8, alpha=0.3)
        values = smooth(values)
    style = ("-", "--", ":")[line.run // len(RUN_COLORS) % 3]
    marker = "o" if len(values) == 1 else None
    axes.plot(line.steps, values, color=line.color, ls=style, lw=1.6 + 0.7 * above, marker=marker)


def smooth(array: np.ndarray) -> np.ndarray:
    """The mean around each value, over a thirtieth of the array."""
    window = np.ones(2 * (len(array) // 60) + 1)
    counts = np.convolve(np.ones(len(array)), window, "same")  # fewer at the ends
    return np.convolve(array, window, "same") / counts


def _draw_frame(axes: Axes, chart: Chart) -> None:
    axes.set_xlabel("step", fontsize=10, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if chart.scale == "log" and all(min(line.values) > 0 for line in chart.lines):
        axes.set_yscale("log")
    elif chart.scale == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", colors=MUTED, labelsize=10, length=0)


def _draw_legend(axes: Axes, curves: Sequence[Line], points: Sequence[Line]) -> None:
    """An entry for each run (or `training`), and one for the marks of validation."""
    # matplotlib hides a label that begins with _
    entries = [Line2D([], [], color=line.color, label=f" {line.label}") for line in curves or points]
    if curves and points:
        entries.append(Line2D([], [], color=MUTED, linestyle="", marker="o", label=" validation"))
    if len(entries) > 1:
        for text in axes.legend(handles=entries, fontsize=9.5, frameon=False).get_texts():
            text.set(color=INK, parse_math=False)
