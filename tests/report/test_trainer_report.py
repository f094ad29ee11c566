"""`trainer report` as a user runs it: a finished run, one in progress, several, nothing."""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from pages import Page, check_alone
from PIL import Image

from trainer.cli import main
from trainer.config import resolve
from trainer.report.charts import GROUND, RUN_COLORS, Chart, Line, draw, smooth
from trainer.report.records import numbers

TASKS = ("vqa", "text", "t2i")
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)> $\\frac{$ _"


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["report", *[str(arg) for arg in args]])


def make_run(folder: Path, steps: int = 80, planned: int = 80, **config: Any) -> Path:
    """A run's folder as training leaves it; the losses fall like 7 / step."""
    folder.mkdir(parents=True)
    records: list[dict[str, Any]] = [_validation(0, 7.0)]
    for step in range(1, steps + 1):
        record = {"kind": "step", "step": step, "loss": 3.0, "learning_rate": 1e-3, "grad_norm": 2.0}
        record["loss_per_task"] = {task: 7 / step + i for i, task in enumerate(TASKS)}
        record |= {"seconds": 0.5, "samples_per_second": 20.0, "tokens_per_second": 1e4 + step}
        record |= {"padding": 0.012, "data_wait": 0.001, "compilations": 7, "peak_memory": 5 * 2**29}
        records.append(record)
    if steps == planned:
        records.append(_validation(steps, 1.25))
    write_records(folder, records)
    content = resolve({"steps": planned, **config}).asdict()
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder


def _validation(step: int, loss: float) -> dict[str, Any]:
    losses = dict.fromkeys(TASKS, loss)
    return {"kind": "validation", "step": step, "loss_per_task": losses, "seconds": 1.0}


def write_records(folder: Path, records: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)


@contextmanager
def all_charts_alike() -> Iterator[None]:
    """One picture in place of every chart: drawing them takes most of a report's time."""
    png = draw(Chart("x", "x", (Line(0, "training", [1, 2], [3.0, 4.0]),)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.report.page.draw", lambda chart: png)
        yield


def charts(page: Page) -> dict[str, str]:
    """The title of each chart → what it says it shows."""
    alts = [a["alt"] or "" for tag, a in page.elements if tag == "img" and "→" not in (a["alt"] or "")]
    return {alt.split(": ")[0]: alt for alt in alts if ": " in alt}


def test_the_page_and_its_pictures_show_the_run(tmp_path: Path) -> None:
    out = make_run(tmp_path / "mixed-001")
    result = run(out)
    assert result.exit_code == 0, result.output
    assert result.output == f"{out}/report/report.html\n"
    page = Page(out / "report" / "report.html")
    check_alone(page)
    drawn = charts(page)
    assert list(drawn)[:3] == [f"Loss, {task}" for task in TASKS]
    assert drawn["Loss, vqa"] == "Loss, vqa: training from 7 to 0.0875; validation from 7 to 1.25"
    others = (
        "learning-rate grad-norm samples-per-second tokens-per-second seconds padding data-wait peak-memory"
    )
    assert "7.000 → <b>1.250</b>" in page.html
    files = {path.stem.removeprefix("report-"): path for path in (out / "report").glob("*.png")}
    assert files.keys() == {*(f"loss-{task}" for task in TASKS), *others.split()}
    assert len(files) == len(drawn)
    assert all(Image.open(file).size == (896, 528) for file in files.values())
    assert not list(out.rglob(".tmp-*"))
    assert (out / "report/report.html").stat().st_size < 4e6


def test_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", seed=3)
    with all_charts_alike():
        assert run(one, two).exit_code == 0
    page = Page(one / "report" / "compared.html")
    check_alone(page)
    assert charts(page)["Learning rate"] == "Learning rate: one from 0.001 to 0.001; two from 0.001 to 0.001"
    differing = page.html.split("Options that differ")[1].split("</table>")[0]
    assert differing.count("<tr>") == 2  # the heading and the seed
    assert "<code>seed</code>" in differing
    same = make_run(tmp_path / "other" / "one")
    assert run(one, same, "--out", tmp_path / "x" / "both.html").exit_code == 0
    assert {f"{one}", f"{same}"} <= {
        text for tag, text in Page(tmp_path / "x" / "both.html").texts if tag == "h3"
    }
    assert (tmp_path / "x" / "both-loss-t2i.png").is_file()


def test_a_run_in_progress_is_shown_so_far(tmp_path: Path) -> None:
    out = make_run(tmp_path / "going", steps=5, planned=100)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 6, "lo')  # a line half written
    with all_charts_alike():
        result = run(out)
    assert result.exit_code == 0, result.output
    assert f"{out}: not finished, at step 5 of 100; the report shows it so far" in result.output
    html = (out / "report" / "report.html").read_text()
    assert "is not finished: step 5 of 100" in html
    assert "1 line of metrics.jsonl could not be read" in html


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "old"
    out.mkdir()
    write_records(
        out, [{"kind": "step", "step": 1, "loss": 2.0, "loss_per_task": {"vqa": None}, "grad_norm": -1}]
    )
    with (out / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": "one"}\n{"kind": "step", "step": 2, "grad_norm": NaN}\n')
    assert run(out).exit_code == 0
    page = Page(out / "report" / "report.html")
    assert list(charts(page)) == ["Gradient norm before clipping"]
    assert "2 lines of metrics.jsonl could not be read" in page.html
    assert "Options" not in page.html


def test_evaluations_are_shown_with_their_pictures(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run")
    matches = ((40, 0.25), (80, 0.5))
    write_records(
        out, [{"kind": "eval", "step": step, "metrics": {"vqa": {"exact_match": x}}} for step, x in matches]
    )
    (out / "eval").mkdir()
    vqa = {"samples": 32, "exact_match": 0.8125, "baseline_exact_match": 0.25}
    result = {"model": "x", "seconds": 9.0, "metrics": {"vqa": vqa}, "baseline": {"vqa": "yes"}}
    (out / "eval" / "validation.json").write_text(json.dumps(result))
    (out / "eval" / "broken.json").write_text("{")
    (out / "eval" / "old.json").write_text('{"metrics": [1], "baseline": 3}')
    Image.fromarray(np.full((2400, 1800, 3), 90, np.uint8)).save(out / "eval" / "grid.png")
    assert run(out).exit_code == 0
    page = Page(out / "report" / "report.html")
    check_alone(page)
    assert charts(page)["vqa, exact match"] == "vqa, exact match: evaluation from 0.25 to 0.5"
    row = '<td class="break">exact match</td><td class="right">0.8125</td><td class="right muted">0.25</td>'
    assert row in page.html
    assert "always “yes”" in page.html
    (grid,) = [a["src"] or "" for tag, a in page.elements if tag == "img" and a["alt"] == "grid.png"]
    assert Image.open(io.BytesIO(base64.b64decode(grid.split(",")[1]))).size == (1200, 1600)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    out = make_run(tmp_path / f"_{HOSTILE.replace('/', '')}", model=HOSTILE)
    markup = HOSTILE.replace("/", "")
    content = {"metrics": {markup: {markup: 1.0}}, "baseline": {markup: HOSTILE}}
    records = [
        {"kind": "step", "step": 1, "loss_per_task": {HOSTILE: 1.0}, HOSTILE: 2.0},
        {"kind": "eval", "step": 1, **content},
    ]
    write_records(out, records)
    (out / "eval").mkdir()
    (out / "eval" / f"{markup}.json").write_text(json.dumps(content))
    other = make_run(tmp_path / "plain")
    write_records(other, records)
    for folders in ([out], [out, other]):
        assert run(*folders, "--out", tmp_path / "page.html").exit_code == 0
        page = Page(tmp_path / "page.html")
        check_alone(page)
        assert page.count("script") == 0
        assert HOSTILE in "".join(text for _, text in page.texts)


def test_a_report_of_nothing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty")
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {tmp_path}/empty: holds no metrics.jsonl")
    assert result.output.count("\n") == 1
    (tmp_path / "empty" / "metrics.jsonl").touch()
    result = run(tmp_path / "empty")
    assert result.exit_code == 2
    assert "records nothing yet" in result.output
    (tmp_path / "file").touch()
    result = run(make_run(tmp_path / "run"), "--out", tmp_path / "file" / "page.html")
    assert result.exit_code == 2
    assert "cannot be written" in result.output
    assert result.output.count("\n") == 1


def test_a_chart_has_its_colours_and_its_line_falls() -> None:
    steps = list(range(100))
    line = Line(0, "training", steps, [10.0 - 0.1 * step for step in steps])
    pixels = np.asarray(Image.open(io.BytesIO(draw(Chart("x", "x", (line,))))).convert("RGB")).astype(int)
    colour = [int(RUN_COLORS[0][i : i + 2], 16) for i in (1, 3, 5)]
    rows, columns = np.nonzero(np.abs(pixels - colour).sum(-1) < 12)
    left, right = rows[columns < np.median(columns)], rows[columns > np.median(columns)]
    assert left.mean() + 50 < right.mean()  # rows count downwards
    assert pixels[2, 2].tolist() == [int(GROUND[i : i + 2], 16) for i in (1, 3, 5)]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_smoothing_stays_within_the_values(values: list[float]) -> None:
    array = np.array(values)
    smoothed = smooth(array)
    assert smoothed.shape == array.shape
    assert smoothed.min() >= array.min() - 1e-3
    assert smoothed.max() <= array.max() + 1e-3
    assert np.allclose(smooth(np.full(len(values), 3.5)), 3.5)


def test_numbers_have_paths_and_are_finite() -> None:
    record = {"step": 3, "kind": "step", "a": {"b": 1, "c": {"d": 2.5}}, "nan": float("nan"), "yes": True}
    assert numbers(record) == {"a/b": 1.0, "a/c/d": 2.5}
