"""What a run shows and leaves beside its numbers: `trainer report`, live progress, TensorBoard events."""

import base64
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import refusal, run_well
from hypothesis import given
from hypothesis import strategies as st
from pages import Page, check_alone
from paths import ROOT
from PIL import Image
from runs import refused, train_well

from trainer.cli import main
from trainer.config import resolve
from trainer.report.charts import GROUND, RUN_COLORS, Chart, Line, draw, smooth

TASKS = ("vqa", "text", "t2i", "edit")
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)> $\\frac{$ _"


def written(page: Path, *args: object) -> Page:
    run_well(main, "report", *args)
    check_alone(Page(page))
    return Page(page)


def make_run(folder: Path, steps: int = 80, planned: int = 80, **config: Any) -> Path:
    """A run's folder as training leaves it; the losses fall like 7 / step."""
    folder.mkdir(parents=True)
    first, last = ({"kind": "validation", "loss_per_task": dict.fromkeys(TASKS, x)} for x in (7.0, 1.25))
    records: list[dict[str, Any]] = [{**first, "step": 0}]
    for step in range(1, steps + 1):
        record = {"kind": "step", "step": step, "loss": 3.0, "learning_rate": 1e-3, "grad_norm": 2.0}
        record["loss_per_task"] = {task: 7 / step + i for i, task in enumerate(TASKS)}
        record |= {"seconds": 0.5, "samples_per_second": 20.0, "tokens_per_second": 1e4 + step}
        record |= {"padding": 0.012, "data_wait": 0.001, "compilations": 7, "peak_memory": 5 * 2**29}
        records.append(record)
    if steps == planned:
        records.append({**last, "step": steps})
    (folder / "config.yaml").write_text(yaml.safe_dump(resolve({"steps": planned, **config}).asdict()))
    return write_records(folder, records)


def write_records(folder: Path, records: list[dict[str, Any]], rest: str = "") -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + rest)
    return folder


@contextmanager
def all_charts_alike() -> Iterator[None]:
    """One picture in place of every chart: drawing them takes most of a report's time."""
    png = draw(Chart("x", "x", (Line(0, "training", [1, 2], [3.0, 4.0]),)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.report.page.draw", lambda chart: png)
        yield


def charts(page: Page) -> dict[str, str]:
    alts = [a["alt"] or "" for tag, a in page.elements if tag == "img" and "→" not in (a["alt"] or "")]
    return {alt.split(": ")[0]: alt for alt in alts if ": " in alt}


def test_the_page_and_its_pictures_show_the_run(tmp_path: Path) -> None:
    out = make_run(tmp_path / "mixed-001")
    path = out / "report" / "report.html"
    assert run_well(main, "report", out) == f"{path}\n"
    check_alone(page := Page(path))
    drawn = charts(page)
    assert list(drawn)[: len(TASKS)] == [f"Loss, {task}" for task in TASKS]
    assert drawn["Loss, vqa"] == "Loss, vqa: training from 7 to 0.0875; validation from 7 to 1.25"
    assert "7.000 → <b>1.250</b>" in page.html
    names = [f"loss-{task}" for task in TASKS] + ["learning-rate", "grad-norm", "samples-per-second"]
    names += ["tokens-per-second", "seconds", "padding", "data-wait", "peak-memory"]
    files = sorted(path.parent.glob("*.png"))
    assert [file.stem for file in files] == sorted(f"report-{name}" for name in names)
    assert len(files) == len(drawn)
    assert all(Image.open(file).size == (896, 528) for file in files)
    assert not list(out.rglob(".tmp-*"))
    assert path.stat().st_size < 4e6


def test_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", seed=3)
    with all_charts_alike():
        page = written(one / "report" / "compared.html", one, two)
    assert charts(page)["Learning rate"] == "Learning rate: one from 0.001 to 0.001; two from 0.001 to 0.001"
    differing = page.html.split("Options that differ")[1].split("</table>")[0]
    assert differing.count("<tr>") == 2  # the heading and the seed
    assert "<code>seed</code>" in differing
    same, path = make_run(tmp_path / "other" / "one"), tmp_path / "x" / "both.html"
    page = written(path, one, same, "--out", path)
    assert {f"{one}", f"{same}"} <= {text for tag, text in page.texts if tag == "h3"}
    assert (tmp_path / "x" / "both-loss-t2i.png").is_file()


def test_a_run_in_progress_is_shown_so_far(tmp_path: Path) -> None:
    out = make_run(tmp_path / "going", steps=5, planned=100)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 6, "lo')  # a line half written
    with all_charts_alike():
        output = run_well(main, "report", out)
    assert f"{out}: not finished, at step 5 of 100; the report shows it so far" in output
    html = (out / "report" / "report.html").read_text()
    assert "is not finished: step 5 of 100" in html
    assert "1 line of metrics.jsonl could not be read" in html


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    record = {"kind": "step", "step": 1, "loss": 2.0, "loss_per_task": {"vqa": None}, "grad_norm": -1}
    broken = '[1]\n{"step": "one"}\n{"kind": "step", "step": 2, "grad_norm": NaN}\n'
    write_records(tmp_path, [record], broken)
    page = written(tmp_path / "report" / "report.html", tmp_path)
    assert list(charts(page)) == ["Gradient norm before clipping"]
    assert "2 lines of metrics.jsonl could not be read" in page.html
    assert "Options" not in page.html


def test_evaluations_are_shown_with_their_pictures(tmp_path: Path) -> None:
    matches = ((40, 0.25), (80, 0.5))
    records = [{"kind": "eval", "step": n, "metrics": {"vqa": {"exact_match": x}}} for n, x in matches]
    out = write_records(make_run(tmp_path / "run"), records)
    (out / "eval").mkdir()
    vqa = {"samples": 32, "exact_match": 0.8125, "baseline_exact_match": 0.25}
    result = {"model": "x", "seconds": 9.0, "metrics": {"vqa": vqa}, "baseline": {"vqa": "yes"}}
    broken = {"broken": "{", "old": '{"metrics": [1], "baseline": 3}'}
    for name, content in {"validation": json.dumps(result), **broken}.items():
        (out / "eval" / f"{name}.json").write_text(content)
    Image.fromarray(np.full((2400, 1800, 3), 90, np.uint8)).save(out / "eval" / "grid.png")
    page = written(out / "report" / "report.html", out)
    assert charts(page)["vqa, exact match"] == "vqa, exact match: evaluation from 0.25 to 0.5"
    row = '<td class="break">exact match</td><td class="right">0.8125</td><td class="right muted">0.25</td>'
    assert row in page.html
    assert "always “yes”" in page.html
    (grid,) = [a["src"] or "" for tag, a in page.elements if tag == "img" and a["alt"] == "grid.png"]
    assert Image.open(io.BytesIO(base64.b64decode(grid.split(",")[1]))).size == (1200, 1600)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    markup = HOSTILE.replace("/", "")
    content = {"metrics": {markup: {markup: 1.0}}, "baseline": {markup: HOSTILE}}
    records = [{"kind": "step", "step": 1, "loss_per_task": {HOSTILE: 1.0}, HOSTILE: 2.0}]
    records += [{"kind": "eval", "step": 1, **content}]
    out = write_records(make_run(tmp_path / f"_{markup}", model=HOSTILE), records)
    (out / "eval").mkdir()
    (out / "eval" / f"{markup}.json").write_text(json.dumps(content))
    other = write_records(make_run(tmp_path / "plain"), records)
    for folders in ([out], [out, other]):
        page = written(tmp_path / "page.html", *folders, "--out", tmp_path / "page.html")
        assert page.count("script") == 0
        assert HOSTILE in "".join(text for _, text in page.texts)


def test_a_report_of_nothing_is_one_line(tmp_path: Path) -> None:
    line = refusal(main, "report", tmp_path)
    assert line.startswith(f"Error: {tmp_path}: holds no metrics.jsonl")
    (tmp_path / "metrics.jsonl").touch()
    assert "records nothing yet" in refusal(main, "report", tmp_path)
    (tmp_path / "file").touch()
    out = make_run(tmp_path / "run")
    assert "cannot be written" in refusal(main, "report", out, "--out", tmp_path / "file" / "page.html")


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
    smoothed = smooth(np.array(values))
    assert smoothed.shape == (len(values),)
    assert min(values) - 1e-3 <= smoothed.min() <= smoothed.max() <= max(values) + 1e-3
    assert np.allclose(smooth(np.full(len(values), 3.5)), 3.5)


STEPS = 3
OPTIONS = ("--model", "model", "--shards", "shards", "--task", "text", "--mode", "pynative")


@pytest.fixture(scope="module")
def screen(work: Path) -> str:
    """What a terminal of 100 columns gets from a run in `terminal`, with event files."""
    options = [*OPTIONS, "--steps", str(STEPS), "--out", "terminal", "--tensorboard"]
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100"}
    command, streams = [sys.executable, "-m", "trainer", "train", *options], ("stdin", "stdout", "stderr")
    process = subprocess.Popen(command, cwd=work, env=environment, **dict.fromkeys(streams, slave))
    os.close(slave)
    shown = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while block := os.read(master, 1 << 16):
            shown += block
    os.close(master)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def test_a_terminal_gets_live_progress_and_a_run_its_report_and_events(work: Path, screen: str) -> None:
    run, last = work / "terminal", f"step {STEPS}/{STEPS}"
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen)
    assert plain != screen
    assert re.search(rf"{last} ━+ 0:00:00 left", plain)
    assert "tokens/s" in plain
    assert f"{last} · loss" not in plain  # that line is for pipes, and for train.log
    assert f"{last} · loss" in (run / "train.log").read_text()
    assert screen.rstrip().endswith("\x1b[?25h")  # the cursor is back
    assert "report: terminal/report/report.html" in screen
    assert "is not finished" not in (run / "report/report.html").read_text()
    assert (run / "report/report-loss-text.png").is_file()
    found = events(run)  # which hold every number
    for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        kind, step = record["kind"], record["step"]
        assert found[f"{kind}/loss_per_task/text", step] == pytest.approx(record["loss_per_task"]["text"])
        assert found[f"{kind}/seconds", step] == pytest.approx(record["seconds"])
    steps = sorted(step for name, step in found if name == "step/learning_rate")
    assert steps == list(range(1, STEPS + 1))


def events(folder: Path) -> dict[tuple[str, int], float]:
    """(name, step) → value of every scalar in the event files, read as TensorBoard's format says."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.glob("events.out.tfevents.*"):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


def test_a_resumed_run_goes_on_with_events_and_survives_its_report(work: Path, screen: str) -> None:
    """A file in the place of the report's folder keeps it from being drawn: a line, and the run is whole."""
    shutil.copytree(work / "terminal", work / "blocked", ignore=shutil.ignore_patterns("report"))
    (work / "blocked" / "report").touch()
    resumed = ("--out", "blocked", "--resume", "--steps", STEPS + 1, "--tensorboard")
    output = train_well(work, *OPTIONS, *resumed)
    names = {name for name, step in events(work / "blocked") if step == STEPS + 1}
    assert {"step/loss", "validation/loss_per_task/text"} <= names
    says = r"report: not written \(blocked/report/report-.*`trainer report blocked` tries again"
    assert re.fullmatch(says, output.splitlines()[-1])
    assert (work / "blocked/checkpoints/step-000004/state.json").is_file()
    assert "\x1b" not in output  # plain lines where nobody can draw
    assert "step 4/4 · loss" in output


def test_without_the_writer_library_it_is_one_line(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    line = refused(work, *OPTIONS, "--steps", 1, "--out", "none", "--tensorboard")
    assert line.startswith("Error: --tensorboard: tensorboardX is not installed; pip install")
    assert not (work / "none").exists()
