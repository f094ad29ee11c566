"""The compiled step: a graph per task (forward, backward, add up), then `measure` and `update`.

`measure` gives summed losses and gradient norm. The host reads these four numbers before `update` applies the
gradients (clipping, AdamW) or they are discarded: one launch more a step, while the next data are made.
"""

# Shapes: see trainer/stream/shapes.py for a batch's arrays.

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from janus.common.graph_cache import Graphs, graph_folder
from janus.inspect.costs import Work, operations
from janus.model.janus import Janus, part_of
from janus.model.kernels import body, plain
from janus.model.layers import lower, working_weights
from janus.model.loss import TaskLoss, TokenScores
from janus.prompts import TASKS, Signature
from trainer.config import TrainConfig
from trainer.evaluate.scores import Score, score_batch
from trainer.optimizer import AdamW, Trained, zeros_like
from trainer.stream.feed import StepData
from trainer.stream.shapes import Batch

NUMBERS = {name: place for place, name in enumerate((*TASKS, "grad_norm"))}
"""Places of the tasks' summed losses and the gradient norm in the tensor that the host reads."""


@dataclass(frozen=True)
class StepNumbers:
    """Summed loss and supervised tokens of each task in one step; gradient norm before clipping."""

    loss_sum: dict[str, float]
    supervised: dict[str, int]
    grad_norm: float

    @property
    def finite(self) -> bool:
        """Whether every loss and the norm are numbers that a step may use."""
        return all(map(math.isfinite, (*self.loss_sum.values(), self.grad_norm)))


class _Accumulate(nn.Cell):
    """Forward and backward of one task's micro-batch, added to the buffers."""

    def __init__(
        self, task: str, loss: TaskLoss, trained: Mapping[str, Parameter], numbers: Parameter
    ) -> None:
        """trained: gradient buffers by the names of their weights."""
        super().__init__(auto_prefix=False)
        weights = [p for p in loss.get_parameters() if p.name in trained]
        self.loss, self.numbers = loss, numbers
        # Of its last layers a backward gives the gradients first. Added in that order, few live at a time:
        # heads, the Llama from its last layer to its table, what makes its pictures.
        weights.reverse()
        weights.sort(key=lambda p: part_of(p.name) in ("siglip", "aligner", "gen_embed", "gen_aligner"))
        self.buffers = ParameterTuple([trained[p.name] for p in weights])
        self.place = Tensor(np.eye(len(NUMBERS), dtype=np.float32)[NUMBERS[task]])
        self.gradients = ms.value_and_grad(self._scaled, None, ParameterTuple(weights), has_aux=True)

    def _scaled(self, scale: Tensor, *arrays: Tensor) -> tuple[Tensor, Tensor]:
        loss_sum = self.loss(*arrays)
        return loss_sum * scale, loss_sum

    def construct(self, scale: Tensor, *arrays: Tensor) -> Tensor:
        (_, loss_sum), gradients = self.gradients(scale, *arrays)
        for i in range(len(self.buffers)):
            ops.assign_add(self.buffers[i], gradients[i].astype(self.buffers[i].dtype))
        return ops.assign_add(self.numbers, self.place * loss_sum)


class _Measure(nn.Cell):
    """The step's numbers: the summed losses, and the norm of the summed gradients."""

    def __init__(self, buffers: list[Parameter], numbers: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.buffers, self.numbers = ParameterTuple(buffers), numbers
        self.sum_of_squares = body().SumOfSquares()
        self.norm_place = Tensor(np.array([name == "grad_norm" for name in NUMBERS], np.float32))

    def construct(self) -> Tensor:
        squares = 0.0
        for i in range(len(self.buffers)):
            squares = squares + self.sum_of_squares(self.buffers[i])
        return self.numbers + self.norm_place * ops.sqrt(squares)


class _Discard(nn.Cell):
    """Empty the buffers, in the plain form: what is not finite goes, too."""

    def __init__(self, buffers: list[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.buffers, self.empty = ParameterTuple(buffers), plain.Empty()

    def construct(self, zero: Tensor) -> Tensor:
        for i in range(len(self.buffers)):
            self.empty(self.buffers[i], zero)
        return zero


class TrainStep:
    """A network being trained: its graphs, gradient buffers and optimizer."""

    def __init__(self, model: Janus, tasks: Mapping[str, Signature], config: TrainConfig) -> None:
        """Set the device. Graphs are kept for the next start on CPU alone."""
        config = config.on_device()
        self._config, self._sizes = config, model.config
        facts = {"options": config.in_graphs(), "network": asdict(model.config)}
        self.graphs = Graphs(facts, graph_folder() if config.device == "CPU" else None)
        if config.gradient_checkpointing:
            for layer in (*model.language_model.layers, *model.vision_model.layers):
                layer.recompute()
        losses = {task: TaskLoss(model, signature) for task, signature in tasks.items()}
        used = {p.name: p for loss in losses.values() for p in loss.get_parameters()}
        weights = [p for name, p in used.items() if part_of(name) in config.trained_parts]
        trained = self._trained(model, weights, config.dtype)
        self.trained = {own.weight.name: own.gradient for own in trained}
        self.weights = {own.weight.name: own.master for own in trained}
        numbers = self._numbers = Parameter(Tensor(np.zeros(len(NUMBERS), np.float32)), name="numbers")
        graph: Callable[..., Any] = self.graphs.compile if config.mode == "graph" else lambda cell, name: cell
        self.optimizer = AdamW(trained, numbers, config, graph)
        self._discard = graph(_Discard([*self.trained.values(), numbers]), "discard")
        self._measure = graph(_Measure(list(self.trained.values()), numbers), "measure")
        self._evaluate = {t: graph(TokenScores(loss), f"evaluate {t}") for t, loss in losses.items()}
        self._accumulate = {
            t: graph(_Accumulate(t, loss, self.trained, numbers), f"accumulate {t}")
            for t, loss in losses.items()
        }
        self._begin()

    @staticmethod
    def _trained(model: Janus, weights: Sequence[Parameter], dtype: str) -> list[Trained]:
        """The weights with buffers and float32 masters; lowers the model to `dtype`."""
        masters = {w.name: w for w in weights}
        for w in working_weights(model) if dtype != "float32" else ():
            if w.name in masters:
                value = Tensor(w.asnumpy())
                masters[w.name] = Parameter(value, name=f"master.{w.name}", requires_grad=False)
        lower(model, dtype)
        gradients = zeros_like(weights, "gradient")
        return [Trained(w, gradient, masters[w.name]) for w, gradient in zip(weights, gradients, strict=True)]

    def _begin(self) -> None:
        self._supervised: Counter[str] = Counter()
        self._norm: float | None = None

    def flops(self, batch: Batch) -> int:
        """Floating-point operations of `accumulate`, by formula."""
        arrays = batch.labels_N, batch.pixels_IHWC, batch.image_tokens_IT
        targets, understood, drawn = (0 if array is None else len(array) for array in arrays)
        work = Work(batch.input_ids_P.size, batch.lengths, targets, understood, drawn)
        return operations(self._sizes, work, self._config.trained_parts)

    def gradients(self, data: StepData) -> StepNumbers:
        """Add up the gradients of a step, see `StepData.scales`. Waits for the device."""
        scales = data.scales(self._config.loss_weight)
        for task, batch in data.batches:
            self.accumulate(task, batch, scales[task])
        return self.measure()

    def accumulate(self, task: str, batch: Batch, scale: float) -> None:
        """Add up the gradient of `scale` times one micro-batch's summed loss; does not wait."""
        self._supervised[task] += batch.supervised
        self._accumulate[task](Tensor(np.float32(scale)), *batch.tensors)

    def measure(self) -> StepNumbers:
        """Losses and gradient norm since the last step, for the caller to `apply` or `discard`; waits."""
        numbers = dict(zip(NUMBERS, self._measure().asnumpy().tolist(), strict=True))
        self._norm = numbers["grad_norm"]
        losses = {task: numbers[task] for task in self._supervised}
        return StepNumbers(losses, dict(self._supervised), numbers["grad_norm"])

    def apply(self, rate: float) -> None:
        """Clip by the norm that `measure` gave, apply AdamW, empty the buffers; does not wait."""
        if self._norm is None:
            raise RuntimeError("apply before measure: the gradient's norm is not known")
        self.optimizer.apply(self._norm, rate)
        self._begin()

    def discard(self) -> None:
        """Empty the buffers; weights, moments and step count stay."""
        self._discard(Tensor(np.float32(0)))
        self._begin()

    def wait(self) -> None:
        """Wait until the device has finished: every graph ends by writing the numbers."""
        self._numbers.asnumpy()

    def evaluate(self, task: str, batch: Batch) -> Score:
        """How well one micro-batch is predicted; trains nothing."""
        (score,) = score_batch(self._evaluate[task], batch)
        return score
