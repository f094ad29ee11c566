"""A training run from top to bottom: check everything, then step, save and validate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from janus.common.errors import UserError
from janus.common.files import FULL
from trainer.config import TrainConfig
from trainer.evaluate.metrics import mean_scores
from trainer.evaluate.probe import Probe
from trainer.report.events import require_writer
from trainer.report.log import RunLog
from trainer.report.meters import Interval, step_time
from trainer.run.checkpoint import save_checkpoint
from trainer.run.folder import write_config
from trainer.run.ledger import Ledger, step_rows
from trainer.run.nonfinite import describe, is_finite, keep_step
from trainer.run.open import Run, describe_data, describe_network, open_run
from trainer.run.signals import StopSignals
from trainer.schedule import learning_rate
from trainer.stream.feed import StepData, steps_ahead

if TYPE_CHECKING:
    from trainer.step import StepNumbers, TrainStep


def train(
    config: TrainConfig, stop: StopSignals, resume: bool = False, accepted: Collection[str] = ()
) -> Path:
    """Train as configured, until the last step or a signal; returns the folder of the run.

    accepted: fields that may differ from the run that is resumed.
    Raises UserError, before the first step, for everything that does not fit together, and later where the
    numbers are not finite or a file cannot be written.
    """
    began = time.perf_counter()
    if config.tensorboard:
        require_writer()
    with ExitStack() as held:
        run = open_run(config, held, resume, accepted)
        write_config(run.out, run.config, run.state.changes)
        try:
            _run(run, stop, began)
        except OSError as error:
            cause = "the disk is full" if error.errno in FULL else "a file cannot be read or written"
            raise UserError(f"{run.out}: {cause} ({error}); mend that, then --resume") from None
    return run.out


def _run(run: Run, stop: StopSignals, began: float) -> None:
    with RunLog(run.out, run.config.steps, run.steps_done, run.config.tensorboard) as log:
        describe_data(run, log.say)
        _note_start(run, log)
        if run.steps_done >= run.config.steps:
            log.say(f"nothing left to do: {run.steps_done} steps are done; give more --steps to go on")
            return
        network, model = _build(run)
        describe_network(run, network, log.say)
        stop.save_first()
        probe = Probe(run, model) if run.config.eval_every else None
        if run.steps_done == 0:
            _validate(run, network, log, 0, probe)
        steps = _Steps(run, network, model, log, stop, probe)
        last = steps.all()
        if stop.received:
            log.say(f"stopped by {stop.received.name}, saved {last}: go on with --out {run.out} --resume")
        else:
            _summarize(run, log, last, steps.seconds, time.perf_counter() - began)
            _report(run, log)


def _note_start(run: Run, log: RunLog) -> None:
    """Note what the run was told to put up with."""
    at = {"step": run.steps_done}
    for change in run.state.changes:
        if change["step"] == run.steps_done:
            line = f"changed: {change['field']} was {change['old']}, now {change['new']} (--resume-with)"
            log.note("changed", change, line)
    if run.edited:
        line = f"warning: trained on as they are (--allow-edited-shards): {'; '.join(run.edited)}"
        log.note("edited_shards", {**at, "differences": run.edited}, line)


def _build(run: Run) -> tuple[TrainStep, Any]:
    """The network on its device, with the optimizer's state where a run goes on."""
    from trainer.step import TrainStep

    model = run.folder.build()
    network = TrainStep(model, run.feed.shapes, run.config)
    if run.checkpoint:
        network.load_state(run.checkpoint.optimizer())
    return network, model


class _Steps:
    """The steps that are left, and what is kept of them: log, ledger, checkpoints."""

    def __init__(
        self,
        run: Run,
        network: TrainStep,
        model: Any,
        log: RunLog,
        stop: StopSignals,
        probe: Probe | None,
    ) -> None:
        self._probe = probe
        self._run, self._network, self._model, self._log, self._stop = run, network, model, log, stop
        self._ledger = Ledger(run.out, run.steps_done)
        self._skipped = run.state.skipped
        self.seconds: list[float] = []  # of each step
        self._interval = Interval(network)
        self._applied: tuple[int, float] | None = None  # the interval's last step, its gradient's norm

    def all(self) -> Path:
        """Take them, until the last or a signal; returns the folder of the last checkpoint."""
        config = self._run.config
        saved = self._run.checkpoint.folder if self._run.checkpoint else self._run.out
        for step, data, waited in steps_ahead(self._run.feed, self._run.steps_done + 1, config.steps):
            numbers = self._step(step, data)
            last, stopping = step == config.steps, self._stop.received is not None
            saving = last or stopping or _due(step, config.save_every)
            validating = last or _due(step, config.eval_every)
            logging = saving or validating or _due(step, config.log_every)
            if logging:
                self._network.wait()
            if numbers is not None:
                self._interval.add(data, waited, numbers)
                self._applied = step, numbers.grad_norm
            if logging:
                self._log_interval()
            if validating:  # before saving: a resumed run does not do it again
                _validate(self._run, self._network, self._log, step, self._probe)
            if saving:
                saved = self._save(step)
            if logging:
                self._interval = Interval(self._network)
            if stopping:
                break
        return saved

    def _step(self, step: int, data: StepData) -> StepNumbers | None:
        """One optimizer step over all micro-batches of all tasks; does not wait until it is applied.

        None where loss or gradient is not finite, and nothing is applied.
        """
        rows = step_rows(step, data)
        self._ledger.add(step, rows)
        scale = 1.0 / data.supervised
        for task, batch in data.batches:
            self._network.accumulate(task, batch, scale)
        numbers = self._network.finish()
        if not is_finite(numbers):
            self._skip(step, data, rows, numbers)
            return None
        self._network.update(_rate(self._run.config, step))
        return numbers

    def _skip(self, step: int, data: StepData, rows: pa.Table, numbers: StepNumbers) -> None:
        """Keep what is known of a step that is not finite, and throw its gradient away.

        Raises UserError if the run has thrown away as many as it may.
        """
        weights = self._model.get_parameters()
        folder = keep_step(self._run.out, step, data, rows, numbers, weights)
        allowed = self._run.config.skip_nonfinite
        what = f"step {step}: {describe(numbers)}"
        if len(self._skipped) >= allowed:
            raise UserError(
                f"{what}; not applied, its samples and inputs are in {folder}: look at them, lower "
                f"--learning-rate in another run, or --resume with --skip-nonfinite {allowed + 1}"
            )
        self._network.discard()
        self._skipped = (*self._skipped, step)
        count = len(self._skipped)
        self._log.note(
            "skipped",
            {"step": step, "count": count, "kept": folder.name},
            f"warning: {what}; skipped, {count} of {allowed} that may be, kept in {folder}",
        )

    def _log_interval(self) -> None:
        """The interval's line, of the last step in it that was applied, if any was."""
        if self._applied is not None:
            step, grad_norm = self._applied
            at = {"step": step, "learning_rate": _rate(self._run.config, step), "grad_norm": grad_norm}
            self._log.step({**at, **self._interval.record()})
            self.seconds += self._interval.step_seconds
        self._applied = None

    def _save(self, step: int) -> Path:
        """Ledger and metrics before the checkpoint: what it says was done is in them."""
        run = self._run

        def save_model(folder: Path) -> None:
            run.folder.save(self._model, folder, run.tokenizer)

        self._ledger.save()
        self._log.sync()
        state = replace(run.state, skipped=self._skipped)
        optimizer, keep = self._network.state(), run.config.keep
        source = run.checkpoint.folder if run.checkpoint else None
        saved = save_checkpoint(run.out, step, save_model, optimizer, state, keep, source)
        self._log.say(f"saved {saved}")
        return saved


def _validate(run: Run, network: TrainStep, log: RunLog, step: int, probe: Probe | None) -> None:
    """Loss per supervised token on each task's validation rows, and with a probe the small evaluation."""
    began = time.perf_counter()
    means = {
        task: mean_scores([network.evaluate(task, batch) for batch in run.feed.validation_batches(task)])
        for task in run.feed.validation
    }
    if not means:
        return
    losses = {task: mean["loss"] for task, mean in means.items()}
    log.validation({"step": step, "loss_per_task": losses, "seconds": time.perf_counter() - began})
    if probe is None:
        return
    began = time.perf_counter()
    metrics = {"vqa": probe.metrics()}
    if "t2i" in means:
        metrics["t2i"] = {"token_accuracy": means["t2i"]["token_accuracy"]}
    metrics = {task: figures for task, figures in metrics.items() if figures}
    if metrics:
        log.evaluation({"step": step, "metrics": metrics, "seconds": time.perf_counter() - began})


def _summarize(run: Run, log: RunLog, checkpoint: Path, step_seconds: list[float], seconds: float) -> None:
    """The closing table, from what the run has recorded."""
    steps = [record for record in log.records if record["kind"] == "step"]
    validations = [record["loss_per_task"] for record in log.records if record["kind"] == "validation"]
    before, after = (validations[0], validations[-1]) if validations else ({}, {})
    rows = {
        **(_meters(steps, step_seconds) if steps else {}),  # none where every one was skipped
        "run": f"{seconds:.1f} s in all, {run.out}",
        "checkpoint": f"{checkpoint} (a model folder: give it as --model)",
    }
    log.summary(rows, before, after)


def _meters(steps: list[dict[str, Any]], step_seconds: list[float]) -> dict[str, str]:
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
        "graphs": f"{last['compilations']}, {last['loaded']} of them loaded; "
        f"{last['compile_seconds']:.1f} s up to their first results",
        "memory": f"{last['peak_memory'] / 2**30:.2f} GiB at its peak",
    }


def _report(run: Run, log: RunLog) -> None:
    """The page and its charts. The run is finished and saved: whatever goes wrong here is one line."""
    from trainer.report.page import write_report

    try:
        log.say(f"report: {write_report([run.out])}")
    except Exception as error:
        log.say(
            f"report: not written ({' '.join(str(error).split())}); `trainer report {run.out}` tries again"
        )


def _rate(config: TrainConfig, step: int) -> float:
    return learning_rate(
        step,
        peak=config.learning_rate,
        schedule=config.schedule,
        warmup_steps=config.warmup_steps,
        steps=config.steps,
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
