"""A training run: open and check everything, then step, record, validate and save."""

import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from mindone.safetensors.mindspore import load_file

from janus.common.errors import UserError
from janus.common.files import FULL
from trainer.config import CONFIG, TrainConfig
from trainer.evaluate.answers import Probe
from trainer.evaluate.scores import mean_scores
from trainer.optimizer import learning_rate
from trainer.report.log import RunLog
from trainer.report.meters import StepRecord
from trainer.run.checkpoint import OPTIMIZER, remove_old, save_checkpoint
from trainer.run.ledger import Ledger
from trainer.run.nonfinite import Skips
from trainer.run.open import Run, describe_data, describe_network, open_run, write_config
from trainer.run.signals import StopSignals
from trainer.step import TrainStep
from trainer.stream.feed import steps_ahead


def train(config: TrainConfig, stop: StopSignals, resume: bool, accepted: Collection[str]) -> None:
    """Train until the last step or a signal. accepted: fields that may differ from the resumed run.

    Raises UserError, before the first step, for whatever does not fit together; later only for numbers that
    are not finite and files that cannot be read or written.
    """
    began = time.perf_counter()
    if config.tensorboard and find_spec("tensorboardX") is None:
        raise UserError("--tensorboard: tensorboardX is not installed; pip install tensorboardX, or drop it")
    with ExitStack() as lock:
        run = open_run(config, lock, resume, accepted)
        try:
            write_config(run.out, run.config, run.state.changes)
            with RunLog(run.out, run.config.steps, run.steps_done, run.config.tensorboard) as log:
                _train(run, log, stop, began)
        except OSError as error:
            cause = "the disk is full" if error.errno in FULL else "a file cannot be read or written"
            remedy = "--resume" if (run.out / CONFIG).is_file() else "start the run again"
            raise UserError(f"{run.out}: {cause} ({error}); fix that, then {remedy}") from None


def _train(run: Run, log: RunLog, stop: StopSignals, began: float) -> None:
    describe_data(run, log.say)
    log.changes(change for change in run.state.changes if change["step"] == run.steps_done)
    if run.steps_done >= run.config.steps:
        log.say(f"nothing left to do: {run.steps_done} steps are done; raise --steps to train further")
        return
    training = _Training(run, log)
    stop.can_save = True
    checkpoint = training.steps(stop)
    if stop.received:
        log.say(f"stopped by {stop.received.name}, saved {checkpoint}: resume with --out {run.out} --resume")
    else:
        log.summary(checkpoint, training.record.step_seconds, time.perf_counter() - began)
        log.write_report()


class _Training:
    """A run with its network on the device, and the records of its steps."""

    def __init__(self, run: Run, log: RunLog) -> None:
        self._run, self._log, self._model = run, log, run.folder.build()
        self._network = TrainStep(self._model, run.feed.signatures, run.config)
        if run.checkpoint:
            self._network.optimizer.load_state(load_file(run.checkpoint.folder / OPTIMIZER))
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
        """Losses of each task's validation rows, and with a probe the small evaluation."""
        began, feed, evaluate = time.perf_counter(), self._run.feed, self._network.evaluate
        means = {
            task: mean_scores([evaluate(task, batch) for batch in feed.validation_batches(task)])
            for task in feed.validation
        }
        if means:
            losses = {task: mean["loss"] for task, mean in means.items()}
            seconds = time.perf_counter() - began
            self._log.validation({"step": step, "loss_per_task": losses, "seconds": seconds})
        if means and self._probe:
            began = time.perf_counter()
            metrics = {"vqa": self._probe.metrics()} if "vqa" in means else {}
            if "t2i" in means:
                metrics["t2i"] = {"token_accuracy": means["t2i"]["token_accuracy"]}
            if metrics:
                seconds = time.perf_counter() - began
                self._log.evaluation({"step": step, "metrics": metrics, "seconds": seconds})

    def _save(self, step: int) -> Path:
        """Save; ledger and metrics first: they hold what the checkpoint says was done."""
        run = self._run
        self._ledger.save()
        self._log.sync()
        optimizer, state = self._network.optimizer.state(), replace(run.state, skipped=self._skips.steps)
        weights = self._network.weights
        saved = save_checkpoint(
            run.out, step, lambda to: run.folder.save(weights, to, run.tokenizer), optimizer, state
        )
        remove_old(run.out, run.config.keep, run.checkpoint.folder if run.checkpoint else None)
        self._log.say(f"saved {saved}")
        return saved


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
