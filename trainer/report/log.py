"""What a run says while it runs: a line per step, `metrics.jsonl`, `train.log`, TensorBoard's event files."""

import json
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from janus.common.console import Display
from trainer.report.meters import step_time
from trainer.report.records import CHANGED, METRICS, keep_records, numbers


class RunLog(ExitStack):
    """The lines, files and progress bar of one run. A terminal shows the bar in place of step lines."""

    def __init__(self, out: Path, steps: int, start: int, tensorboard: bool = False) -> None:
        """start: the last step done; metrics of later steps, left by a run that died, are dropped."""
        super().__init__()
        self._out, self._steps = out, steps
        out.mkdir(parents=True, exist_ok=True)
        self.records = keep_records(out / METRICS, start)
        # Line-buffered: what is said is in the file, also where the run dies.
        self._metrics = self.enter_context((out / METRICS).open("a", 1, encoding="utf-8"))
        self._lines = self.enter_context((out / "train.log").open("a", 1, encoding="utf-8"))
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            # TensorBoard drops what older files hold of later steps.
            self._events = SummaryWriter(str(out), purge_step=start + 1 if start else None)
            self.callback(self._events.close)
        self._progress = Display("step", steps, start, sys.stdout) if sys.stdout.isatty() else None
        if self._progress:
            self.enter_context(self._progress.live)

    def say(self, line: str) -> None:
        """Show a line on the console and append it to train.log."""
        self._lines.write(line + "\n")
        (self._progress.say if self._progress else click.echo)(line)

    def step(self, record: Mapping[str, Any]) -> None:
        """Log one training step, or the steps since the last line (`StepRecord`)."""
        self._record({"kind": "step", **record})
        line = step_line(record, self._steps)
        if self._progress:
            self._lines.write(line + "\n")
            self._progress.show(record["step"], line.split(" · ", 1)[1])
        else:
            self.say(line)

    def validation(self, record: Mapping[str, Any]) -> None:
        """Log one validation: {"step", "loss_per_task", "seconds"}."""
        losses = _losses(record["loss_per_task"])
        line = f"validation after step {record['step']} · {losses} · {record['seconds']:.1f} s"
        self.note("validation", record, line)

    def evaluation(self, record: Mapping[str, Any]) -> None:
        """Log one small evaluation: {"step", "metrics": {task: {name: number}}, "seconds"}."""
        parts = record["metrics"].items()
        figures = " · ".join(f"{part} {name} {x:.4g}" for part, own in parts for name, x in own.items())
        line = f"evaluation after step {record['step']} · {figures} · {record['seconds']:.1f} s"
        self.note("eval", record, line)

    def changes(self, changes: Iterable[Mapping[str, Any]]) -> None:
        """Log the options that this start overrides (`RunState.changes`)."""
        for change in changes:
            line = f"changed: {change['field']} was {change['old']}, now {change['new']} (--resume-with)"
            self.note(CHANGED, change, line)

    def note(self, kind: str, record: Mapping[str, Any], line: str) -> None:
        """Log a record of any other kind, and its line."""
        self._record({"kind": kind, **record})
        self.say(line)

    def sync(self) -> None:
        """Flush metrics and lines to the disk: a checkpoint must not outlive them."""
        for file in (self._metrics, self._lines):
            os.fsync(file.fileno())

    def summary(self, checkpoint: Path, step_seconds: Sequence[float], seconds: float) -> None:
        """Say validation losses and figures. step_seconds: of every step that compiled nothing."""
        steps = [record for record in self.records if record["kind"] == "step"]
        losses = [record["loss_per_task"] for record in self.records if record["kind"] == "validation"]
        for task, loss in losses[-1].items() if losses else ():
            before = f"{losses[0][task]:.4f} → " if task in losses[0] else ""
            self.say(f"validation loss, {task}: {before}{loss:.4f}")
        for line in _figures(steps, step_seconds) if steps else ():  # none where every step was skipped
            self.say(line)
        self.say(f"run: {self._out}, {seconds:.1f} s in total")
        self.say(f"checkpoint: {checkpoint} (a model folder: give it as --model)")

    def write_report(self) -> None:
        """Write the page and its charts. The run is saved by now, so any failure is only a line."""
        try:
            from trainer.report.page import write_report

            self.say(f"report: {write_report([self._out])}")
        except Exception as error:
            reason = " ".join(str(error).split())
            self.say(f"report: not written ({reason}); `trainer report {self._out}` tries again")

    def _record(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))
        self._metrics.write(json.dumps(record) + "\n")
        if self._events is not None:
            for name, value in numbers(record).items():
                self._events.add_scalar(f"{record['kind']}/{name}", value, record["step"])


def step_line(record: Mapping[str, Any], steps: int) -> str:
    """A step in one line that is easy to read and to grep."""
    return (
        f"step {record['step']}/{steps} · loss {record['loss']:.4f} · {_losses(record['loss_per_task'])} · "
        f"lr {record['learning_rate']:.2e} · norm {record['grad_norm']:.3f} · {record['seconds']:.3f} s · "
        f"{record['samples_per_second']:.1f} samples/s · {record['tokens_per_second']:.0f} tokens/s · "
        f"padding {record['padding']:.1%} · wait {record['data_wait']:.1%} · "
        f"{record['flops_per_second'] / 1e9:.1f} GF/s · compiled {record['compilations']}"
    )


def _losses(per_task: Mapping[str, float]) -> str:
    return " ".join(f"{task} {loss:.4f}" for task, loss in per_task.items())


def _figures(steps: Sequence[Mapping[str, Any]], step_seconds: Sequence[float]) -> Iterator[str]:
    """The closing lines of the meters: medians over the log lines, step time over every step."""
    names = ("samples_per_second", "tokens_per_second", "slots_per_second", "flops_per_second")
    samples, tokens, slots, flops, padding, wait = (
        statistics.median(record[name] for record in steps) for name in (*names, "padding", "data_wait")
    )
    last, step = steps[-1], "every step compiled a graph"
    if step_seconds:
        step = "{:.3f} s, p95 {:.3f} s".format(*step_time(step_seconds).values())
    yield (
        f"step: {step}; {samples:.1f} samples/s, {tokens:.0f} real of {slots:.0f} padded tokens/s, "
        f"{flops / 1e9:.1f} GF/s (medians); padding {padding:.1%}"
    )
    waited = sum(record["data_wait_seconds"] for record in steps)
    yield f"data: waited for {waited:.2f} s, {wait:.2%} of the time (median)"
    graphs = f"{last['compilations']}, {last['loaded']} of them loaded from the cache"
    yield f"graphs: {graphs}; {last['compile_seconds']:.1f} s until their first results"
    yield f"memory: peak {last['peak_memory'] / 2**30:.2f} GiB"
