"""`trainer report`: one HTML page and PNGs that show how runs went, several laid over each other.

    page = write_report([Path("outputs/mixed-001")])    # outputs/mixed-001/report/report.html

A run that is still going is shown as far as it came.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from janus.common.page import data_uri, picture_uri, render_page, write_whole
from janus.prompts import TASK_ORDER
from trainer.report.charts import DARK, LIGHT, RUN_COLORS, charts, draw
from trainer.report.history import History, numbers, read_history, run_names

TEMPLATES = Path(__file__).parent / "templates"
PICTURE_BYTES = 1_500_000
"""Of each picture of an evaluation, which may be a large grid."""


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page, and each chart as a PNG beside it; gives the page's path.

    out: the page; by default `report/report.html` in the run's folder, or `report/compared.html` in the first
    one's. Raises UserError for a folder without metrics, and for a place that cannot be written.
    """
    runs = [read_history(folder) for folder in folders]
    names = run_names(folders)
    page = out or folders[0] / "report" / ("report.html" if len(runs) == 1 else "compared.html")
    drawn = []
    for chart in charts(runs, names):
        light = draw(chart, LIGHT)
        write_whole(page.with_name(f"{page.stem}-{chart.name}.png"), light)
        pictures = {"light": data_uri(light, "image/png"), "dark": data_uri(draw(chart, DARK), "image/png")}
        drawn.append({"name": chart.name, "words": chart.words, **pictures})
    values = {
        "runs": [_run(run, name, i) for i, (run, name) in enumerate(zip(runs, names, strict=True))],
        "charts": drawn,
        "options": _options(runs),
        "evaluations": _evaluations(runs, names),
        "pictures": _pictures(runs, names),
    }
    write_whole(page, render_page(TEMPLATES, "report", values))
    return page


def progress_line(folder: Path) -> str | None:
    """For a run that is not at its end: how far it came. None if it is."""
    run = read_history(folder)
    if run.finished:
        return None
    return (
        f"{folder}: not finished, at step {run.last_step} of {run.planned_steps}; the report shows it so far"
    )


def _run(run: History, name: str, index: int) -> dict[str, Any]:
    """The run's facts, for the panel at the top."""
    rates = ("seconds", "step_seconds_median", "samples_per_second", "tokens_per_second", "padding")
    median = {key: _median(run, key) for key in rates}
    _, memory = run.series.get(("step", "peak_memory"), ([], []))
    return {
        "name": name,
        "folder": str(run.folder),
        "color": index % RUN_COLORS,
        "finished": run.finished,
        "last_step": run.last_step,
        "planned_steps": run.planned_steps,
        "unreadable": run.unreadable,
        "written": datetime.fromtimestamp(run.written).strftime("%Y-%m-%d %H:%M:%S"),
        "config": run.config,
        "losses": _losses(run),
        # A line's seconds hold what its steps compiled; older runs record nothing else.
        "seconds": median["step_seconds_median"] or median["seconds"],
        "median": median,
        "memory": max(memory) / 2**30 if memory else None,
    }


def _losses(run: History) -> list[tuple[str, float, float, str]]:
    """Task, first and last loss, and whether of validation or (where there is none) of training."""
    rows = []
    for task in TASK_ORDER:
        for kind in ("validation", "step"):
            _, values = run.series.get((kind, f"loss_per_task/{task}"), ([], []))
            if values:
                rows.append(
                    (task, values[0], values[-1], "validation" if kind == "validation" else "training")
                )
                break
    return rows


def _median(run: History, name: str) -> float | None:
    _, values = run.series.get(("step", name), ([], []))
    return statistics.median(values) if values else None


def _options(runs: Sequence[History]) -> list[dict[str, Any]]:
    """Every option with its value in each run; those that differ come first."""
    names = list(dict.fromkeys(name for run in runs for name in run.config))
    rows = []
    for name in names:
        values = [_plain(run.config[name]) if name in run.config else "—" for run in runs]
        rows.append({"name": name, "values": values, "differs": len(set(values)) > 1})
    return sorted(rows, key=lambda row: not row["differs"])


def _plain(value: Any) -> str:
    """An option's value as config.yaml has it, in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items()) or "—"
    return ", ".join(map(str, value)) or "—" if isinstance(value, list) else str(value)


def _evaluations(runs: Sequence[History], names: Sequence[str]) -> list[dict[str, Any]]:
    """A table per results file and part: figures by name, beside those of always giving one answer."""
    tables = []
    for run, name in zip(runs, names, strict=True):
        for file, content in run.evaluations.items():
            baseline = content.get("baseline")
            for part, rows in _parts(content).items():
                answer = baseline.get(part) if isinstance(baseline, dict) else None
                tables.append({"run": name, "file": file, "part": part, "rows": rows, "baseline": answer})
    return tables


def _parts(content: Mapping[str, Any]) -> dict[str, list[tuple[str, float, float | None]]]:
    """Part → (name, figure, the baseline's figure or None)."""
    parts: dict[str, dict[str, float]] = {}
    for path, value in numbers(content).items():
        if path.startswith("metrics/") and path.count("/") == 2:
            _, part, name = path.split("/")
            parts.setdefault(part, {})[name] = value
    return {
        part: [
            (name, value, found.get(f"baseline_{name}"))
            for name, value in found.items()
            if not name.startswith("baseline_")
        ]
        for part, found in parts.items()
    }


def _pictures(runs: Sequence[History], names: Sequence[str]) -> list[dict[str, str]]:
    import numpy as np
    from PIL import Image

    found = []
    for run, name in zip(runs, names, strict=True):
        for path in run.pictures:
            with Image.open(path) as picture:
                pixels_HWC = np.asarray(picture.convert("RGB"))
            uri = picture_uri(pixels_HWC, PICTURE_BYTES, longest=1600)
            found.append({"run": name, "file": path.name, "uri": uri})
    return found
