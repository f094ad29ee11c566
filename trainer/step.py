"""The compiled step: one graph a task (forward, backward, add up), then two that close it.

The first of the two measures the summed gradients; the host reads its four numbers, and says whether the
second applies them (clipping, AdamW) or they are thrown away.
"""

# Shapes: see trainer/stream/batch.py for a batch's arrays.

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from janus.common.graph_cache import Graphs, graph_folder
from janus.model.janus import PARTS, part_of
from janus.model.loss import TaskLoss
from janus.model.scoring import TokenScores
from janus.model.stages import trained_parts
from trainer.evaluate.metrics import Score
from trainer.flops import batch_flops
from trainer.stream.batch import Batch

if TYPE_CHECKING:
    from janus.model.janus import Janus
    from trainer.config import TrainConfig
    from trainer.stream.feed import StepData

GRAD_NORM = 3
NUMBERS = {"text": 0, "vqa": 1, "t2i": 2, "grad_norm": GRAD_NORM}
"""Where each task's summed loss, and the gradient's norm, lie in the tensor that is read."""


@dataclass(frozen=True)
class StepNumbers:
    """What one step has added up: summed loss and supervised tokens of each task, norm before clipping."""

    loss_sum: dict[str, float]
    supervised: dict[str, int]
    grad_norm: float

    @property
    def finite(self) -> bool:
        """Whether the step may be applied: every task's loss and the gradient's norm are finite."""
        return all(map(math.isfinite, (*self.loss_sum.values(), self.grad_norm)))


class _Accumulate(nn.Cell):
    """Forward and backward of one task's micro-batch, added to the buffers."""

    def __init__(
        self, loss: TaskLoss, weights: list[Parameter], buffers: list[Parameter], numbers: Parameter
    ) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.buffers = ParameterTuple(buffers)
        self.numbers = numbers
        self.place = Tensor(np.eye(len(NUMBERS), dtype=np.float32)[NUMBERS[loss.task]])
        self.gradients = ms.value_and_grad(self._scaled, None, ParameterTuple(weights), has_aux=True)

    def _scaled(self, scale: Tensor, *arrays: Tensor) -> tuple[Tensor, Tensor]:
        loss_sum = self.loss(*arrays)
        return loss_sum * scale, loss_sum

    def construct(self, scale: Tensor, *arrays: Tensor) -> Tensor:
        """Add gradient and summed loss up; gives the running numbers."""
        (_, loss_sum), gradients = self.gradients(scale, *arrays)
        for i in range(len(self.buffers)):
            ops.assign_add(self.buffers[i], gradients[i])
        return ops.assign_add(self.numbers, self.place * loss_sum)


class _Measure(nn.Cell):
    """The step's numbers: the summed losses, and the norm of the summed gradients."""

    def __init__(self, buffers: list[Parameter], numbers: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.buffers, self.numbers = ParameterTuple(buffers), numbers
        self.norm_place = Tensor(np.eye(len(NUMBERS), dtype=np.float32)[GRAD_NORM])

    def construct(self) -> Tensor:
        """Numbers as `NUMBERS` places them; nothing is changed."""
        squares = 0.0
        for i in range(len(self.buffers)):
            squares = squares + _sum_of_squares(self.buffers[i])
        return self.numbers + self.norm_place * ops.sqrt(squares)


class _Update(nn.Cell):
    """Clip by global norm, AdamW, empty the buffers.

    `ops.AdamWeightDecay` has no bias correction; `rates` brings PyTorch's numbers out of it
    (`adamw_rates`).
    """

    def __init__(
        self, weights: list[Parameter], buffers: list[Parameter], numbers: Parameter, config: TrainConfig
    ) -> None:
        super().__init__(auto_prefix=False)
        self.weights, self.buffers = ParameterTuple(weights), ParameterTuple(buffers)
        self.mean = ParameterTuple(_like(weights, "adam_m"))
        self.square = ParameterTuple(_like(weights, "adam_v"))
        self.numbers = numbers
        self.beta1, self.beta2 = Tensor(config.beta1, ms.float32), Tensor(config.beta2, ms.float32)
        self.adamw = ops.AdamWeightDecay()

    def construct(self, clip: Tensor, rate: Tensor, eps: Tensor, decay: Tensor) -> Tensor:
        """Apply the gradients times `clip` at `rate`; gives the emptied numbers."""
        for i in range(len(self.weights)):
            self.adamw(
                self.weights[i],
                self.mean[i],
                self.square[i],
                rate,
                self.beta1,
                self.beta2,
                eps,
                decay,
                self.buffers[i] * clip,
            )
            # Not zeros: they would stand in the graph as constants, one for every weight.
            ops.assign_sub(self.buffers[i], self.buffers[i])
        return ops.assign_sub(self.numbers, self.numbers)


def _sum_of_squares(x: Tensor) -> Tensor:
    """Σ x² as matrix products: the CPU's ReduceSum is several times slower."""
    x_RD = x.reshape(-1, x.shape[-1])
    rows_R1 = ops.matmul(ops.square(x_RD), ops.ones((x_RD.shape[1], 1), x.dtype))
    return ops.matmul(ops.ones((1, x_RD.shape[0]), x.dtype), rows_R1).reshape(())


def clip_factor(norm: float, clip_norm: float) -> float:
    """What gradients of this norm are multiplied by, as torch's `clip_grad_norm_` has it."""
    return min(1.0, clip_norm / (norm + 1e-6))


def adamw_rates(step: int, rate: float, config: TrainConfig) -> tuple[float, float, float]:
    """(rate, eps, decay) with which AdamW without bias correction gives the numbers of PyTorch's.

    step: 1 for the first. From p ← p − lr·λ·p − lr·m̂/(√v̂ + ε), m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ)
    (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2).
    """
    correction1 = 1.0 - config.beta1**step
    correction2 = (1.0 - config.beta2**step) ** 0.5
    fused_rate = rate * correction2 / correction1
    return fused_rate, config.eps * correction2, config.weight_decay * correction1 / correction2


def _like(weights: list[Parameter], prefix: str) -> list[Parameter]:
    """Zeros of the weights' shapes, float32."""
    return [
        Parameter(
            Tensor.from_numpy(np.zeros(w.shape, np.float32)), name=f"{prefix}.{w.name}", requires_grad=False
        )
        for w in weights
    ]


class TrainStep:
    """A network being trained: its graphs, gradient buffers and moments."""

    def __init__(self, model: Janus, tasks: Iterable[str], config: TrainConfig) -> None:
        self._config, self._network = config, model.config
        self.device = config.device
        ms.set_context(mode=ms.PYNATIVE_MODE)
        if ms.get_context("device_target") != config.device:
            ms.set_device(config.device)
        facts = {"options": config.in_graphs(), "network": asdict(model.config)}
        self.graphs = Graphs(facts, graph_folder() if config.device == "CPU" else None)
        if config.gradient_checkpointing:
            for layer in (*model.language_model.layers, *model.vision_model.layers):
                layer.recompute()
        parts = self._trained_parts = trained_parts(config.stage, config.train_gen_embed)
        losses = {task: TaskLoss(model, task, config.dtype) for task in tasks}
        used = {p.name: p for loss in losses.values() for p in loss.get_parameters()}
        trained = [p for name, p in used.items() if part_of(name) in parts]
        buffers = dict(zip([p.name for p in trained], _like(trained, "gradient"), strict=True))
        numbers = Parameter(Tensor(np.zeros(len(NUMBERS), np.float32)), name="numbers")
        self.parameters = _elements(model, {p.name for p in trained})
        self._buffers, self._numbers = list(buffers.values()), numbers
        self._update = _Update(trained, self._buffers, numbers, config)
        self._apply = self._compiled(self._update, "update")
        self._measure = self._compiled(_Measure(self._buffers, numbers), "measure")
        self._evaluate = {
            task: self._compiled(TokenScores(loss), f"evaluate {task}") for task, loss in losses.items()
        }
        self._accumulate = {}
        for task, loss in losses.items():
            weights = [p for p in loss.get_parameters() if p.name in buffers]
            cell = _Accumulate(loss, weights, [buffers[p.name] for p in weights], numbers)
            self._accumulate[task] = self._compiled(cell, f"accumulate {task}")
        self._step = 0
        self._supervised = dict.fromkeys(losses, 0)
        self._norm: float | None = None

    def _compiled(self, cell: nn.Cell, name: str) -> Callable[..., Any]:
        """The Cell as one graph, or as it is where the mode is "pynative"."""
        return cell if self._config.mode == "pynative" else self.graphs.compile(cell, name)

    def flops(self, task: str, batch: Batch) -> int:
        """Floating-point operations of `accumulate`, by formula."""
        return batch_flops(self._network, task, batch, self._trained_parts)

    def accumulate(self, task: str, batch: Batch, scale: float) -> None:
        """Run one micro-batch forward and backward and add its gradient up; does not wait.

        scale: 1 / supervised tokens of the whole step.
        """
        self._supervised[task] += batch.supervised
        self._accumulate[task](_scalar(scale), *_tensors(batch))

    def gradients(self, data: StepData) -> StepNumbers:
        """Add up the gradients of the step's micro-batches, of the mean loss per supervised token."""
        for task, batch in data.batches:
            self.accumulate(task, batch, 1.0 / data.supervised)
        return self.finish()

    def finish(self) -> StepNumbers:
        """Loss and gradient norm of all micro-batches since the last step, once the device has added them up.

        Nothing is applied yet: the caller looks at the numbers and calls `update` or `discard`, so weights
        never meet a gradient that is not finite. That costs one read of four floats a step. The device
        waits for it no longer than for one launch, and what `accumulate` is given is on its way by then.
        """
        numbers = self._measure().asnumpy()
        self._norm = norm = float(numbers[GRAD_NORM])
        supervised = {task: n for task, n in self._supervised.items() if n}
        return StepNumbers({task: float(numbers[NUMBERS[task]]) for task in supervised}, supervised, norm)

    def update(self, learning_rate: float) -> None:
        """Clip by the norm that `finish` has read, apply AdamW, empty the buffers; does not wait.

        Raises RuntimeError where the step was not finished: its norm is not known.
        """
        if self._norm is None:
            raise RuntimeError("update before finish: the gradient's norm is not known")
        self._step += 1
        rates = adamw_rates(self._step, learning_rate, self._config)
        self._apply(*map(_scalar, (clip_factor(self._norm, self._config.clip_norm), *rates)))
        self._begin()

    def discard(self) -> None:
        """Empty the buffers; weights, moments and step count stay as they are."""
        for parameter in (*self._buffers, self._numbers):
            ops.assign(parameter, ops.zeros_like(parameter))
        self._begin()

    def wait(self) -> None:
        """Return when the device has done all it was given: every graph ends by writing the numbers."""
        self._numbers.asnumpy()

    def _begin(self) -> None:
        self._supervised = dict.fromkeys(self._supervised, 0)
        self._norm = None

    def evaluate(self, task: str, batch: Batch) -> Score:
        """The score of a whole batch; nothing is changed."""
        nll_N, hits_N = (scores.asnumpy() for scores in self._evaluate[task](*_tensors(batch)))
        used_N = batch.labels_N >= 0
        return Score(float(nll_N[used_N].sum()), int(hits_N[used_N].sum()), batch.supervised)

    def state(self) -> dict[str, Tensor]:
        """Moments and step count, to save beside the weights."""
        moments = (*self._update.mean, *self._update.square)
        return {"step": Tensor([self._step], ms.int64)} | {p.name: p for p in moments}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self._step = int(tensors["step"].asnumpy()[0])
        for parameter in (*self._update.mean, *self._update.square):
            # Not set_data: a graph that has run keeps reading the old memory.
            ops.assign(parameter, tensors[parameter.name])


def _elements(model: Janus, trained: set[str]) -> dict[str, tuple[int, int]]:
    """(trainable, frozen) elements of each part of the network."""
    elements = {part: [0, 0] for part in PARTS}
    for parameter in model.get_parameters():
        elements[part_of(parameter.name)][parameter.name not in trained] += int(np.prod(parameter.shape))
    return {part: (counts[0], counts[1]) for part, counts in elements.items() if sum(counts)}


def _tensors(batch: Batch) -> list[Tensor]:
    return [Tensor(array) for array in batch.inputs]


def _scalar(value: float) -> Tensor:
    return Tensor(np.float32(value))
