"""`trainer report`: one HTML page and PNGs that show how runs went, several laid over each other.

    page = write_report([Path("outputs/mixed-001")])    # outputs/mixed-001/report/report.html

A run that is still going is shown as far as it has come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from janus.common.page import data_uri, picture_uri, render_page, write_whole
from janus.prompts import TASK_ORDER
from trainer.report.charts import RUN_COLORS, charts, draw
from trainer.report.records import History, numbers, read_history

TEMPLATES = Path(__file__).parent / "templates"
PICTURE_BYTES = 1_500_000
"""Of each picture of an evaluation, which may be a large grid."""


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page, and each chart as a PNG beside it; gives the page's path.

    out: the page; by default `report/report.html` in the run's folder, or `report/compared.html` in the first
    one's. Raises UserError for a folder without metrics, and for a place that cannot be written.
    """
    runs = [read_history(folder) for folder in folders]
    short = [folder.resolve().name for folder in folders]
    names = [x if short.count(x) == 1 else str(folder) for x, folder in zip(short, folders, strict=True)]
    page = out or folders[0] / "report" / ("report.html" if len(runs) == 1 else "compared.html")
    drawn = []
    for chart in charts(runs, names):
        png = draw(chart)
        write_whole(page.with_name(f"{page.stem}-{chart.name}.png"), png)
        drawn.append({"description": chart.description, "uri": data_uri(png, "image/png")})
    named = list(zip(names, runs, strict=True))
    values = {
        "runs": [_facts(run, name, i % len(RUN_COLORS)) for i, (name, run) in enumerate(named)],
        "charts": drawn,
        "options": _options(runs),
        "evaluations": [table for name, run in named for table in _evaluations(run, name)],
        "pictures": [
            {"run": name, "file": path.name, "uri": _picture(path)}
            for name, run in named
            for path in run.pictures
        ],
    }
    write_whole(page, render_page(TEMPLATES, "report", values))
    return page


def progress_line(folder: Path) -> str | None:
    """How far a run has come; None if it is finished."""
    run = read_history(folder)
    if run.finished:
        return None
    return (
        f"{folder}: not finished, at step {run.last_step} of {run.planned_steps}; the report shows it so far"
    )


def _facts(run: History, name: str, color: int) -> dict[str, Any]:
    """The run's facts, for the panel at the top."""
    memory = run.values("step", "peak_memory")
    # A line's seconds include compilation; older runs record nothing else.
    seconds = run.median("step_seconds_median") or run.median("seconds")
    return {
        "name": name,
        "history": run,
        "color": color,
        "written": datetime.fromtimestamp(run.written).strftime("%Y-%m-%d %H:%M:%S"),
        "losses": _losses(run),
        "seconds": seconds,
        "memory": max(memory) / 2**30 if memory else None,
    }


def _losses(run: History) -> list[tuple[str, float, float, str]]:
    """Task, first and last loss, and its kind: validation, or training where there is no validation."""
    rows = []
    for task in TASK_ORDER:
        for kind, record in (("validation", "validation"), ("training", "step")):
            if values := run.values(record, f"loss_per_task/{task}"):
                rows.append((task, values[0], values[-1], kind))
                break
    return rows


def _options(runs: Sequence[History]) -> list[dict[str, Any]]:
    """Every option with its value in each run; those that differ come first."""
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.config):
        values = [_plain(run.config[name]) if name in run.config else "—" for run in runs]
        rows.append({"name": name, "values": values, "differs": len(set(values)) > 1})
    return sorted(rows, key=lambda row: not row["differs"])


def _plain(value: Any) -> str:
    """An option's value as config.yaml has it, on one line."""
    if isinstance(value, dict):
        value = [f"{name} {number}" for name, number in value.items()]
    return ", ".join(map(str, value)) or "—" if isinstance(value, list) else str(value)


def _evaluations(run: History, name: str) -> list[dict[str, Any]]:
    """A table for each results file and part: figures by name, beside those of the baseline."""
    tables = []
    for file, content in run.evaluations.items():
        answers = content.get("baseline")
        for part, figures in _parts(content).items():
            rows = [
                (figure, value, figures.get(f"baseline_{figure}"))
                for figure, value in figures.items()
                if not figure.startswith("baseline_")
            ]
            baseline = answers.get(part) if isinstance(answers, dict) else None
            tables.append({"run": name, "file": file, "part": part, "rows": rows, "baseline": baseline})
    return tables


def _parts(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Part of the evaluation → name → figure."""
    parts: dict[str, dict[str, float]] = {}
    for path, value in numbers(content).items():
        if path.startswith("metrics/") and path.count("/") == 2:
            _, part, name = path.split("/")
            parts.setdefault(part, {})[name] = value
    return parts


def _picture(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        return picture_uri(np.asarray(picture.convert("RGB")), PICTURE_BYTES, longest=1600)
