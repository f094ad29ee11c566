"""What a run says while it runs: one line per step, `metrics.jsonl`, `train.log`, progress on a terminal."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from trainer.report.events import EventFiles
from trainer.report.meters import step_time
from trainer.report.records import CHANGED, METRICS, keep_records
from trainer.report.terminal import LiveProgress


class RunLog:
    """The lines, files and progress bar of one run.

    Each line goes to `train.log`; steps also to the console where there is no terminal to draw on.
    """

    def __init__(self, out: Path, steps: int, start: int, tensorboard: bool = False) -> None:
        """start: the last step done; metrics of later steps (of a run that died) are dropped."""
        self._out = out
        out.mkdir(parents=True, exist_ok=True)
        self.records = keep_records(out / METRICS, start)
        self._metrics = (out / METRICS).open("a", encoding="utf-8")
        self._lines = (out / "train.log").open("a", encoding="utf-8")
        self._steps = steps
        self._events = EventFiles(out, start) if tensorboard else None
        self._progress = LiveProgress(steps, start) if sys.stdout.isatty() else None

    def __enter__(self) -> RunLog:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._metrics.close()
        self._lines.close()
        if self._events is not None:
            self._events.close()

    def say(self, line: str) -> None:
        """A line for console and train.log."""
        self._write(line)
        if self._progress is not None:
            self._progress.say(line)
        else:
            click.echo(line)

    def step(self, record: Mapping[str, Any]) -> None:
        """One training step, or the steps since the last line (`StepRecord`)."""
        self._record({"kind": "step", **record})
        line = step_line(record, self._steps)
        if self._progress is None:
            self.say(line)
        else:
            self._write(line)
            self._progress.step(record["step"], line.split(" · ", 1)[1])

    def validation(self, record: Mapping[str, Any]) -> None:
        """One validation: {"step", "loss_per_task", "seconds"}."""
        losses = _losses(record["loss_per_task"])
        line = f"validation after step {record['step']} · {losses} · {record['seconds']:.1f} s"
        self.note("validation", record, line)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """One small evaluation: {"step", "metrics": {task: {name: number}}, "seconds"}."""
        figures = " · ".join(
            f"{task} {name} {value:.4g}"
            for task, metrics in record["metrics"].items()
            for name, value in metrics.items()
        )
        line = f"evaluation after step {record['step']} · {figures} · {record['seconds']:.1f} s"
        self.note("eval", record, line)

    def note(self, kind: str, record: Mapping[str, Any], line: str) -> None:
        """A record of any other kind, and its line."""
        self._record({"kind": kind, **record})
        self.say(line)

    def sync(self) -> None:
        """Flush metrics and lines to the disk: a checkpoint must not outlive them."""
        for file in (self._metrics, self._lines):
            os.fsync(file.fileno())

    def changes(self, changes: Iterable[Mapping[str, Any]]) -> None:
        """Options that this start has overridden (`RunState.changes`)."""
        for change in changes:
            line = f"changed: {change['field']} was {change['old']}, now {change['new']} (--resume-with)"
            self.note(CHANGED, change, line)

    def summary(self, checkpoint: Path, step_seconds: Sequence[float], seconds: float) -> None:
        """The closing table: validation loss per task before and after, and the run's figures.

        step_seconds: of every step that compiled nothing. seconds: of the whole run.
        """
        steps = [record for record in self.records if record["kind"] == "step"]
        losses = [record["loss_per_task"] for record in self.records if record["kind"] == "validation"]
        for line in _losses_table(losses[0], losses[-1]) if losses else ():
            self.say(line)
        rows = {
            **(_figures(steps, step_seconds) if steps else {}),  # none where every step was skipped
            "run": f"{self._out}, {seconds:.1f} s in total",
            "checkpoint": f"{checkpoint} (a model folder: give it as --model)",
        }
        for name, value in rows.items():
            self.say(f"{name}: {value}")

    def write_report(self) -> None:
        """Write the page and its charts. The run is saved by now: whatever goes wrong here is one line."""
        from trainer.report.page import write_report

        try:
            self.say(f"report: {write_report([self._out])}")
        except Exception as error:
            reason = " ".join(str(error).split())
            self.say(f"report: not written ({reason}); `trainer report {self._out}` tries again")

    def _record(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))
        self._metrics.write(json.dumps(record) + "\n")
        self._metrics.flush()
        if self._events is not None:
            self._events.add(record)

    def _write(self, line: str) -> None:
        self._lines.write(line + "\n")
        self._lines.flush()


def step_line(record: Mapping[str, Any], steps: int) -> str:
    """A step in one line that is easy to read and to grep."""
    return (
        f"step {record['step']}/{steps} · loss {record['loss']:.4f} · {_losses(record['loss_per_task'])} · "
        f"lr {record['learning_rate']:.2e} · norm {record['grad_norm']:.3f} · {record['seconds']:.3f} s · "
        f"{record['samples_per_second']:.1f} samples/s · {record['tokens_per_second']:.0f} tokens/s · "
        f"padding {record['padding']:.1%} · wait {record['data_wait']:.1%} · "
        f"{record['flops_per_second'] / 1e9:.1f} GF/s · "
        f"compiled {record['compilations']}"
    )


def _losses(per_task: Mapping[str, float]) -> str:
    return " ".join(f"{task} {loss:.4f}" for task, loss in per_task.items())


def _losses_table(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    table = Table("validation loss", "before", "after", "change")
    for task, loss in after.items():
        first = before.get(task)
        known = ("", "") if first is None else (f"{first:.4f}", f"{loss - first:+.4f}")
        table.add_row(task, known[0], f"{loss:.4f}", known[1])
    console = Console(width=100, no_color=True, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().rstrip().splitlines()]


def _figures(steps: Sequence[Mapping[str, Any]], step_seconds: Sequence[float]) -> dict[str, str]:
    """The closing lines of the meters: medians over the log lines, step time over every step."""

    def median(name: str) -> float:
        return statistics.median(record[name] for record in steps)

    last, times = steps[-1], step_time(step_seconds)
    step = "every step compiled a graph"
    if step_seconds:
        step = f"{times['step_seconds_median']:.3f} s, p95 {times['step_seconds_p95']:.3f} s"
    waited = sum(record["data_wait_seconds"] for record in steps)
    return {
        "step": f"{step}; {median('samples_per_second'):.1f} samples/s, "
        f"{median('tokens_per_second'):.0f} real of {median('slots_per_second'):.0f} padded tokens/s, "
        f"{median('flops_per_second') / 1e9:.1f} GF/s (medians); padding {median('padding'):.1%}",
        "data": f"waited for {waited:.2f} s, {median('data_wait'):.2%} of the time (median)",
        "graphs": f"{last['compilations']}, {last['loaded']} of them loaded from the cache; "
        f"{last['compile_seconds']:.1f} s until their first results",
        "memory": f"peak {last['peak_memory'] / 2**30:.2f} GiB",
    }
