"""From summed gradients to new weights: learning rate, clipping, AdamW.

AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), with g clipped by its global norm and t = 1
for the first step:

    m ← β₁m + (1 − β₁)g        m̂ = m / (1 − β₁ᵗ)
    v ← β₂v + (1 − β₂)g²       v̂ = v / (1 − β₂ᵗ)
    p ← p − lr·λ·p − lr·m̂ / (√v̂ + ε)

`ops.AdamWeightDecay` is one kernel without the two corrections; `adamw_rates` puts them into its arguments.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, mint, nn, ops

from janus import device
from janus.model.kernels import body
from janus.model.weights import pieces
from trainer.config import TrainConfig


@dataclass(frozen=True)
class Trained:
    """A weight that is trained, the sum of its gradients, and its float32 value, which AdamW changes.

    master is the weight itself where that is float32; else the weight is its rounded copy.
    """

    weight: Parameter
    gradient: Parameter
    master: Parameter


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step `step` (1 is the first): linear warm-up, then constant, cosine or linear decay.

    The peak is at step `warmup_steps`. The first rate is above zero; a decay ends one step after the last.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if step <= warmup:
        return peak * step / warmup
    if config.schedule == "constant":
        return peak
    done = (step - warmup - 1) / (config.steps - warmup)
    if config.schedule == "linear":
        return peak * (1 - done)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def adamw_rates(step: int, rate: float, config: TrainConfig) -> tuple[float, float, float]:
    """(rate, eps, decay) with which AdamW without bias correction gives the numbers of PyTorch's."""
    correction1 = 1.0 - config.beta1**step
    correction2 = (1.0 - config.beta2**step) ** 0.5
    fused_rate = rate * correction2 / correction1
    return fused_rate, config.eps * correction2, config.weight_decay * correction1 / correction2


class AdamW:
    """Moments, step count, and the graph that applies the summed gradients and empties their buffers."""

    def __init__(
        self,
        trained: Sequence[Trained],
        numbers: Parameter,
        config: TrainConfig,
        to_graph: Callable[..., Any],
    ) -> None:
        self._config, self._step = config, 0
        update = _Update(trained, numbers, config)
        self._moments = (*update.m, *update.v)
        self._update = to_graph(update, "update")

    def apply(self, norm: float, rate: float) -> None:
        """Clip gradients of this global norm and take one step at learning rate `rate`; does not wait."""
        self._step += 1
        clip = min(1.0, self._config.clip_norm / (norm + 1e-6))  # as torch's `clip_grad_norm_`
        factors = clip, *adamw_rates(self._step, rate, self._config), 0.0
        self._update(*(Tensor(np.float32(factor)) for factor in factors))

    def state(self) -> dict[str, Tensor]:
        """Moments and step count, to save with the weights."""
        return {"step": Tensor([self._step], ms.int64)} | {p.name: p for p in self._moments}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave, in which joined parameters are parted."""
        self._step = int(tensors["step"].asnumpy()[0])
        for parameter in self._moments:
            # Not set_data: a graph that has run goes on reading the old memory.
            ops.assign(parameter, mint.concat([tensors[name] for name in pieces(parameter.name)]))


class _Update(nn.Cell):
    """Clip, AdamW, empty the buffers; letters as in the formulas above."""

    def __init__(self, trained: Sequence[Trained], numbers: Parameter, config: TrainConfig) -> None:
        super().__init__(auto_prefix=False)
        weights = [own.weight for own in trained]
        self.p = ParameterTuple([own.master for own in trained])
        self.g, self.numbers = ParameterTuple([own.gradient for own in trained]), numbers
        self.m, self.v = (ParameterTuple(zeros_like(weights, name)) for name in ("adam_m", "adam_v"))
        lowered = [i for i, own in enumerate(trained) if own.weight is not own.master]
        self.lowered, self.copies = tuple(lowered), ParameterTuple([weights[i] for i in lowered])
        self.beta1, self.beta2 = Tensor(config.beta1, ms.float32), Tensor(config.beta2, ms.float32)
        self.adamw, self.empty = ops.AdamWeightDecay(), body().Empty()

    def construct(self, clip: Tensor, rate: Tensor, eps: Tensor, decay: Tensor, zero: Tensor) -> Tensor:
        for i in range(len(self.p)):
            g = self.g[i] * clip
            self.adamw(self.p[i], self.m[i], self.v[i], rate, self.beta1, self.beta2, eps, decay, g)
            self.empty(self.g[i], zero)
        for i in range(len(self.copies)):
            ops.assign(self.copies[i], self.p[self.lowered[i]].astype(self.copies[i].dtype))
        return self.empty(self.numbers, zero)


def zeros_like(weights: Sequence[Parameter], prefix: str) -> list[Parameter]:
    """Parameters `PREFIX.NAME` of zeros, float32, in the weights' shapes."""
    return [
        Parameter(device.zeros(w.shape, ms.float32), name=f"{prefix}.{w.name}", requires_grad=False)
        for w in weights
    ]
