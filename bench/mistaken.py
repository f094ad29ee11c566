"""The known mistakes, and runs that make them: each a few lines that deviate from the shipped step.

The product has no option for them. Every run begins with the same weights and goes through one `TrainStep`;
what differs is a `Case`. bfloat16 has no kernels on CPU: weights are rounded to it after each update, which
is exactly what a bfloat16 weight would hold, while products and moments stay float32.
"""

# Shapes: N states that predict, V codes; other suffixes: trainer/stream/batch.py.

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from janus.generate.sampling import guide
from janus.prompts import PromptRow, encode_samples, unconditional
from janus.tokens import IGNORE, SpecialTokens
from shards.block import RowBlock
from trainer.config import TrainConfig, resolve
from trainer.evaluate.metrics import mean_scores
from trainer.options import find_recipe, load_recipe
from trainer.run.open import Run, open_run
from trainer.schedule import learning_rate
from trainer.stream.batch import Batch
from trainer.stream.feed import Feed, StepData, steps_ahead

GUIDANCE = 5.0
LOW_RATE = 1e-5
"""As low as fine-tuning goes; Janus-Pro's own last stage is at 4e-5."""
POINTS = 6
"""Validations of a run, besides the one before its first step."""
HELD_OUT = 16
"""Validation samples of each task."""

Point = dict[str, float]
"""What is known at one step: `step`, and figures by name."""


def summed_scales(data: StepData) -> dict[str, float]:
    """What each task's summed loss is multiplied with, as shipped: 1 / supervised tokens of the step."""
    return dict.fromkeys((task for task, _ in data.batches), 1.0 / data.supervised)


def mean_scales(data: StepData) -> dict[str, float]:
    """The mistake: each task's loss over its own supervised tokens, then the mean of the tasks."""
    tokens: dict[str, int] = {}
    for task, batch in data.batches:
        tokens[task] = tokens.get(task, 0) + batch.supervised
    return {task: 1.0 / (len(tokens) * count) for task, count in tokens.items()}


def as_it_is(data: StepData) -> StepData:
    """The step unchanged."""
    return data


def without_first_tokens(data: StepData) -> StepData:
    """The mistake: the labels of each picture's first token are ignored, N is one fewer a picture."""
    batches = [
        (task, _labels_kept(batch, ~_first_tokens(batch)) if task == "t2i" else batch)
        for task, batch in data.batches
    ]
    return StepData(batches, data.drawn)


def _first_tokens(batch: Batch) -> np.ndarray:
    """Which of a t2i batch's N states predict the first token of a picture."""
    assert batch.image_tokens_IT is not None
    return np.arange(len(batch.labels_N)) % batch.image_tokens_IT.shape[1] == 0


def _labels_kept(batch: Batch, kept_N: np.ndarray) -> Batch:
    labels_N = np.where(kept_N, batch.labels_N, IGNORE)
    return replace(batch, labels_N=labels_N, supervised=int((labels_N != IGNORE).sum()))


class EmptyCaptions(Feed):
    """The mistake: a prompt that is to be nulled becomes an empty caption in an otherwise whole prompt."""

    def __init__(self, run: Run) -> None:
        image = run.feed.shapes["t2i"].image
        super().__init__(run.shards, run.config, run.tokenizer.special, image)
        (self._empty,) = encode_samples(run.tokenizer, [PromptRow("t2i", "")], image.tokens)

    def _without_prompts(self, rows: RowBlock, places: list[int]) -> RowBlock:
        starts, ends = self._empty.supervised.T
        changed = {"input_ids": self._empty.input_ids, "span_starts": starts, "span_ends": ends}
        for name, array in changed.items():
            rows = rows.replaced(name, dict.fromkeys(places, array.tobytes()))
        return rows


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Finite float32 values rounded to the nearest bfloat16 (ties to even), as float32."""
    bits = values.view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def rounded(weights: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The weights as a bfloat16 checkpoint holds them."""
    return [to_bfloat16(values) for values in weights]


def lost_share(
    before: Sequence[np.ndarray], updated: Sequence[np.ndarray], kept: Sequence[np.ndarray]
) -> float:
    """Of all weights that the update changed, the share that rounding put back to what it was."""
    changed = [old != new for old, new in zip(before, updated, strict=True)]
    same = [old == new for old, new in zip(before, kept, strict=True)]
    undone = sum(int((c & s).sum()) for c, s in zip(changed, same, strict=True))
    return undone / max(1, sum(int(c.sum()) for c in changed))


@dataclass(frozen=True)
class Case:
    """One run. first: the step of the plan it begins with. rate: constant; None: the recipe's schedule."""

    name: str
    edit: Callable[[StepData], StepData] = as_it_is
    scales: Callable[[StepData], dict[str, float]] = summed_scales
    empty_captions: bool = False
    bfloat16: bool = False
    first: int = 1
    rate: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Figures over steps; those of the end alone; the weights at the end."""

    points: list[Point]
    end: Mapping[str, float]
    weights: list[np.ndarray]


class Bench:
    """One compiled network that every case is run through, and what it is measured on."""

    def __init__(self, shards: Path, model: str, steps: int, out: Path) -> None:
        """Open shards and model. Raises UserError where they do not fit together."""
        from trainer.step import TrainStep

        self.steps = steps
        # Twice the steps, so that a run on the plan's next steps has the same shapes.
        given = {"shards": str(shards), "model": model, "out": str(out), "steps": 2 * steps}
        recipe = load_recipe(find_recipe("sample"))
        config = resolve({**recipe, **given, "eval_samples": HELD_OUT})
        self._held = ExitStack()
        self.run = open_run(config, self._held)
        self.model = self.run.folder.build()
        self.network = TrainStep(self.model, self.run.feed.shapes, self.config)
        self.initial = self.weights()
        self._shapes = {name: tensor.shape for name, tensor in self.network.state().items()}

    @property
    def config(self) -> TrainConfig:
        """The configuration all cases share."""
        return self.run.config

    def weights(self) -> list[np.ndarray]:
        """A copy of every weight."""
        return [parameter.asnumpy().copy() for parameter in self.model.get_parameters()]

    def set_weights(self, weights: Iterable[np.ndarray]) -> None:
        """Give every weight a value."""
        import mindspore as ms
        from mindspore import ops

        for parameter, values in zip(self.model.get_parameters(), weights, strict=True):
            ops.assign(parameter, ms.Tensor(values))

    def restart(self, weights: list[np.ndarray]) -> None:
        """These weights, no moments, step 0."""
        import mindspore as ms

        self.set_weights(weights)
        kinds = {name: np.int64 if name == "step" else np.float32 for name in self._shapes}
        zeros = {name: np.zeros(shape, kinds[name]) for name, shape in self._shapes.items()}
        self.network.load_state({name: ms.Tensor(array) for name, array in zeros.items()})

    def rate(self, case: Case, step: int) -> float:
        """Learning rate of a case's step `step`, 1 is the first."""
        config, warmup = self.config, min(self.config.warmup_steps, self.steps // 2)
        return case.rate or learning_rate(
            step, peak=config.learning_rate, schedule=config.schedule, warmup_steps=warmup, steps=self.steps
        )

    def train(self, case: Case, weights: list[np.ndarray], steps: int) -> Outcome:
        """Run one case from these weights."""
        self.restart(rounded(weights) if case.bfloat16 else weights)
        feed = EmptyCaptions(self.run) if case.empty_captions else self.run.feed
        every = max(1, steps // POINTS)
        points: list[Point] = []
        lost: list[float] = []
        for number, data, _ in steps_ahead(feed, case.first, case.first + steps - 1):
            step, data = number - case.first + 1, case.edit(data)
            if step == 1:
                points.append({"step": 0, **self.measure(case, data)})
            lost.append(self._step(case, data, self.rate(case, step)))
            if step % every == 0 or step == steps:
                points.append({"step": step, "lost": lost[-1], **self.measure(case, data)})
        return Outcome(points, {**self.guided(), "lost in all": float(np.mean(lost))}, self.weights())

    def _step(self, case: Case, data: StepData, rate: float) -> float:
        """One optimizer step; the share of its changes to weights that rounding undid (0 in float32)."""
        self.accumulate(case, data, [task for task, _ in data.batches])
        before = self.weights() if case.bfloat16 else []
        self.network.finish()
        self.network.update(rate)
        if not case.bfloat16:
            return 0.0
        updated = self.weights()
        kept = rounded(updated)
        self.set_weights(kept)
        return lost_share(before, updated, kept)

    def accumulate(self, case: Case, data: StepData, tasks: Sequence[str]) -> None:
        """Forward and backward of these tasks' calls, scaled as the case has it."""
        scales = case.scales(data)
        for task, batch in data.batches:
            if task in tasks:
                self.network.accumulate(task, batch, scales[task])

    def measure(self, case: Case, data: StepData) -> Point:
        """Validation loss of each task, −log p of first and of unprompted tokens, gradients of `data`."""
        losses = {task: self._loss(task, batches) for task, batches in self.held_out.items()}
        firsts = [_labels_kept(batch, _first_tokens(batch)) for batch in self.held_out["t2i"]]
        norms = {task: self._norm(case, data, task) for task in losses}
        shares = {f"gradient of {task}": norm / sum(norms.values()) for task, norm in norms.items()}
        first, unprompted = self._loss("t2i", firsts), self._loss("t2i", self.unprompted)
        return {**losses, "first": first, "unprompted": unprompted, **shares}

    def _loss(self, task: str, batches: Iterable[Batch]) -> float:
        return mean_scores([self.network.evaluate(task, batch) for batch in batches])["loss"]

    def _norm(self, case: Case, data: StepData, task: str) -> float:
        """Norm of one task's part of a step's gradient; nothing is applied."""
        self.accumulate(case, data, [task])
        norm = self.network.finish().grad_norm
        self.network.discard()
        return norm

    def guided(self) -> dict[str, float]:
        """−log p and accuracy of the held-out codes under guidance, each after the true codes before it."""
        from mindspore import Tensor

        from janus.model.loss import TaskLoss

        loss = TaskLoss(self.model, "t2i")
        nll, hits, tokens = 0.0, 0, 0
        for pair in zip(self.held_out["t2i"], self.unprompted, strict=True):
            given_NV, null_NV = (loss.logits(*map(Tensor, batch.inputs[1:])).asnumpy() for batch in pair)
            used_N = pair[0].labels_N >= 0
            labels_N1 = pair[0].labels_N[used_N][:, None]
            logits_NV = guide(given_NV[used_N], null_NV[used_N], GUIDANCE).astype(np.float64)
            top_N1 = logits_NV.max(1, keepdims=True)
            sums_N1 = top_N1 + np.log(np.exp(logits_NV - top_N1).sum(1, keepdims=True))
            nll += float((sums_N1 - np.take_along_axis(logits_NV, labels_N1, 1)).sum())
            hits += int((logits_NV.argmax(1)[:, None] == labels_N1).sum())
            tokens += len(labels_N1)
        return {"guided": nll / tokens, "guided accuracy": hits / tokens}

    @cached_property
    def held_out(self) -> dict[str, list[Batch]]:
        """Validation batches of each task."""
        feed = self.run.feed
        return {task: list(feed.validation_batches(task)) for task in feed.validation}

    @cached_property
    def unprompted(self) -> list[Batch]:
        """The t2i validation batches with each row as guidance's unconditional one."""
        return [_unprompted(batch, self.run.tokenizer.special) for batch in self.held_out["t2i"]]


def _unprompted(batch: Batch, special: SpecialTokens) -> Batch:
    ids_P = batch.input_ids_P.copy()
    starts = np.flatnonzero(batch.position_ids_P[: batch.tokens] == 0)
    for sample in np.split(ids_P[: batch.tokens], starts[1:]):  # views into ids_P
        sample[:] = unconditional(sample, special)
    return replace(batch, input_ids_P=ids_P)
