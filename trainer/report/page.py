"""`trainer report`: one HTML page and PNGs that show how runs went, several laid over each other."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from janus.common.page import data_uri, picture_uri, render_page, write_output
from trainer.report.charts import RUN_COLORS, charts, draw
from trainer.report.records import History, numbers, read_history

TEMPLATES = Path(__file__).parent / "templates"
PICTURE_BYTES = 1_500_000  # at most, of a picture of an evaluation, which may be a large grid


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page, and each chart as a PNG beside it; returns the page's path.

    out: by default `report/report.html` in the run's folder, of several `report/compared.html` in the first.
    Raises UserError for a folder without metrics, and for a place that cannot be written.
    """
    runs = [read_history(folder) for folder in folders]
    names = [run.name for run in runs]
    runs = [run if names.count(run.name) == 1 else replace(run, name=str(run.folder)) for run in runs]
    page = out or folders[0] / "report" / ("report.html" if len(runs) == 1 else "compared.html")
    drawn = []
    for chart in charts(runs):
        png = draw(chart)
        write_output(page.with_name(f"{page.stem}-{chart.name}.png"), png)
        drawn.append({"description": chart.description, "uri": data_uri(png, "image/png")})
    values = {
        "runs": runs,
        "colors": len(RUN_COLORS),
        "charts": drawn,
        "options": _options(runs),
        "evaluations": [table for run in runs for table in _evaluations(run)],
        "pictures": [(run.name, path.name, _picture(path)) for run in runs for path in run.pictures],
    }
    write_output(page, render_page(TEMPLATES, "report", values))
    return page


def progress_line(folder: Path) -> str | None:
    """How far a run has come; None if it is finished."""
    run = read_history(folder)
    at = f"at step {run.last_step} of {run.planned_steps}"
    return None if run.finished else f"{folder}: not finished, {at}; the report shows it so far"


def _options(runs: Sequence[History]) -> list[dict[str, Any]]:
    """Every option with its value in each run; those that differ come first."""
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.config):
        values = [_plain(run.config.get(name, "—")) for run in runs]
        rows.append({"name": name, "values": values, "differs": len(set(values)) > 1})
    return sorted(rows, key=lambda row: not row["differs"])


def _plain(value: Any) -> str:
    """An option's value as config.yaml has it, on one line."""
    if isinstance(value, dict):
        value = [f"{name} {number}" for name, number in value.items()]
    return ", ".join(map(str, value)) or "—" if isinstance(value, list) else str(value)


def _evaluations(run: History) -> list[dict[str, Any]]:
    """A table for each results file and part: each figure, and the baseline's of the same name."""
    tables = []
    for file, content in run.evaluations.items():
        rows = defaultdict(list)
        figures, answers = numbers(content), content.get("baseline")
        for path, value in figures.items():
            match path.split("/"):
                case ["metrics", part, name] if not name.startswith("baseline_"):
                    rows[part].append((name, value, figures.get(f"metrics/{part}/baseline_{name}")))
        for part in rows:
            answer = answers.get(part) if isinstance(answers, dict) else None
            tables.append({"run": run.name, "file": file, "part": part, "rows": rows[part], "always": answer})
    return tables


def _picture(path: Path) -> str:
    with Image.open(path) as picture:
        return picture_uri(np.asarray(picture.convert("RGB")), PICTURE_BYTES, longest=1600)
