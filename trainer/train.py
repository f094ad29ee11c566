"""A training run from top to bottom: open and check everything, then step, record, validate and save."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from janus.common.errors import UserError
from janus.common.files import FULL
from trainer.config import TrainConfig
from trainer.evaluate.answers import Probe
from trainer.evaluate.scores import mean_scores
from trainer.optimizer import learning_rate
from trainer.report.events import require_writer
from trainer.report.log import RunLog
from trainer.report.meters import StepRecord
from trainer.run.checkpoint import remove_old, save_checkpoint
from trainer.run.folder import write_config
from trainer.run.ledger import Ledger
from trainer.run.nonfinite import Skips
from trainer.run.open import Run, describe_data, describe_network, open_run
from trainer.run.signals import StopSignals
from trainer.stream.feed import steps_ahead


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
    with ExitStack() as lock:
        run = open_run(config, lock, resume, accepted)
        write_config(run.out, run.config, run.state.changes)
        try:
            with RunLog(run.out, run.config.steps, run.steps_done, run.config.tensorboard) as log:
                _train(run, log, stop, began)
        except OSError as error:
            cause = "the disk is full" if error.errno in FULL else "a file cannot be read or written"
            raise UserError(f"{run.out}: {cause} ({error}); fix that, then --resume") from None
    return run.out


def _train(run: Run, log: RunLog, stop: StopSignals, began: float) -> None:
    """began: when the process turned to this run, for the closing figures."""
    describe_data(run, log.say)
    log.changes(change for change in run.state.changes if change["step"] == run.steps_done)
    if run.steps_done >= run.config.steps:
        log.say(f"nothing left to do: {run.steps_done} steps are done; raise --steps to train further")
        return
    training = _Training(run, log)
    stop.save_first()
    checkpoint = training.steps(stop)
    if stop.received:
        log.say(f"stopped by {stop.received.name}, saved {checkpoint}: resume with --out {run.out} --resume")
    else:
        log.summary(checkpoint, training.record.step_seconds, time.perf_counter() - began)
        log.write_report()


class _Training:
    """A run whose network is on its device, and the files its steps are kept in."""

    def __init__(self, run: Run, log: RunLog) -> None:
        from trainer.step import TrainStep

        self._run, self._log = run, log
        self._model = run.folder.build()
        self._network = TrainStep(self._model, run.feed.shapes, run.config)
        if run.checkpoint:
            self._network.optimizer.load_state(run.checkpoint.optimizer())
        self._probe = Probe(run, self._model) if run.config.eval_every else None
        self._ledger = Ledger(run.out, run.steps_done)
        self._skips = Skips(run.out, run.config.skip_nonfinite, run.state.skipped)
        self.record = StepRecord(self._network, log.step)
        describe_network(self._model, self._network.trained, log.say)

    def steps(self, stop: StopSignals) -> Path:
        """Train until the last step or a signal; returns the folder of the last checkpoint."""
        config, network, saved = self._run.config, self._network, self._run.out
        if self._run.steps_done == 0:
            with self.record.paused():
                self._validate(0)
        for step, data, waited in steps_ahead(self._run.feed, self._run.steps_done + 1, config.steps):
            rate = learning_rate(step, config)
            self._ledger.add(step, data)
            numbers = network.gradients(data)
            if numbers.finite:
                network.apply(rate)
            else:
                note = self._skips.add(step, data, numbers, self._model.get_parameters())
                network.discard()
                self._log.note("skipped", *note)

            last, stopping = step == config.steps, stop.received is not None
            validating = last or _due(step, config.eval_every)
            saving = last or stopping or _due(step, config.save_every)
            line = validating or saving or _due(step, config.log_every)
            self.record.add(step, data, numbers, rate, waited, line)
            with self.record.paused():
                if validating:  # before saving: a resumed run does not do it again
                    self._validate(step)
                if saving:
                    saved = self._save(step)
            if stopping:
                break
        return saved

    def _validate(self, step: int) -> None:
        """Loss per supervised token on each task's validation rows, and with a probe the small evaluation."""
        began, feed = time.perf_counter(), self._run.feed
        means = {
            task: mean_scores(
                [self._network.evaluate(task, batch) for batch in feed.validation_batches(task)]
            )
            for task in feed.validation
        }
        if not means:
            return
        losses = {task: mean["loss"] for task, mean in means.items()}
        self._log.validation({"step": step, "loss_per_task": losses, "seconds": time.perf_counter() - began})
        if self._probe is None:
            return
        began = time.perf_counter()
        metrics = {"vqa": self._probe.metrics()}
        if "t2i" in means:
            metrics["t2i"] = {"token_accuracy": means["t2i"]["token_accuracy"]}
        metrics = {task: figures for task, figures in metrics.items() if figures}
        if metrics:
            self._log.evaluation({"step": step, "metrics": metrics, "seconds": time.perf_counter() - began})

    def _save(self, step: int) -> Path:
        """Ledger and metrics before the checkpoint: what it says was done is in them."""
        run = self._run
        self._ledger.save()
        self._log.sync()
        state = replace(run.state, skipped=self._skips.steps)
        save_model = partial(run.folder.save, self._model, tokenizer=run.tokenizer)
        saved = save_checkpoint(run.out, step, save_model, self._network.optimizer.state(), state)
        remove_old(run.out, run.config.keep, run.checkpoint.folder if run.checkpoint else None)
        self._log.say(f"saved {saved}")
        return saved


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
