"""The optimizer against PyTorch's formulas in float64, and the learning rate by hand."""

from collections.abc import Callable
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops
from rounding import UNIT, rounding_bound

from trainer.config import TrainConfig
from trainer.optimizer import AdamW, learning_rate, zeros_like

CONFIG = replace(TrainConfig(), device="CPU")


def _optimizer(
    start: np.ndarray, config: TrainConfig, to_graph: Callable = lambda cell, name: cell
) -> tuple[Parameter, Parameter, AdamW]:
    """A weight, its gradient and their optimizer."""
    weight = Parameter(Tensor(start.copy()), name="w")
    (gradient,) = zeros_like([weight], "gradient")
    numbers = Parameter(Tensor(np.zeros(4, np.float32)), name="numbers")
    return weight, gradient, AdamW([(weight, gradient)], numbers, config, to_graph)


def _reference(weight: np.ndarray, gradients: np.ndarray, rate: float, config: TrainConfig) -> np.ndarray:
    """AdamW after clipping by global norm, as torch writes it, in float64."""
    weight = weight.astype(np.float64)
    mean = square = np.zeros_like(weight)
    for step, gradient in enumerate(gradients.astype(np.float64), 1):
        gradient = gradient * min(1.0, config.clip_norm / (np.sqrt((gradient**2).sum()) + 1e-6))
        mean = config.beta1 * mean + (1 - config.beta1) * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient**2
        weight = weight * (1 - rate * config.weight_decay)
        root = np.sqrt(square / (1 - config.beta2**step)) + config.eps
        weight = weight - rate * mean / (1 - config.beta1**step) / root
    return weight


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("scale", [0.01, 10.0])
def test_adamw_has_torchs_numbers(decay: float, scale: float) -> None:
    config = replace(CONFIG, weight_decay=decay)
    generator = np.random.default_rng(0)
    start = generator.standard_normal((5, 7)).astype(np.float32)
    gradients = (generator.standard_normal((20, 5, 7)) * scale).astype(np.float32)
    weight, buffer, optimizer = _optimizer(start, config)
    for gradient in gradients:
        ops.assign(buffer, Tensor(gradient))
        optimizer.apply(float(np.linalg.norm(gradient)), 1e-2)
        assert not buffer.asnumpy().any()
    expected = _reference(start, gradients, 1e-2, config)
    # 20 updates, four roundings each: of the decay, both factors of the step, and the difference.
    np.testing.assert_allclose(weight.asnumpy(), expected, rtol=0, atol=rounding_bound(start, 20, 4))


def test_a_thousand_small_steps_move_a_weight_as_far_as_they_should() -> None:
    """At 1e-5 a bfloat16 weight of 1.0 would never move: the step is below half its last digit."""
    weight, buffer, optimizer = _optimizer(
        np.ones(1, np.float32), CONFIG, lambda cell, name: ms.jit(cell.construct)
    )
    for _ in range(1000):
        ops.assign(buffer, Tensor(np.full(1, 0.5, np.float32)))
        optimizer.apply(0.5, 1e-5)
    expected = _reference(np.ones(1), np.full((1000, 1), 0.5), 1e-5, CONFIG)
    assert expected[0] == pytest.approx(0.99, abs=1e-6)
    # The same difference a thousand times: roundings of a weight below 1 may all go one way.
    assert weight.asnumpy()[0] == pytest.approx(expected[0], abs=1000 * UNIT / 2)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_warm_up_rises_to_the_peak_and_every_step_has_an_effect(schedule: str) -> None:
    config = replace(CONFIG, learning_rate=2.0, schedule=schedule, warmup_steps=4, steps=20)
    rates = [learning_rate(step, config) for step in range(1, 21)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert min(rates) > 0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert (rates[-1] == 2.0) == (schedule == "constant")
    assert learning_rate(4, replace(config, steps=4)) == 2.0  # a run that is all warm-up


def test_decays_by_hand() -> None:
    linear, cosine = (replace(CONFIG, learning_rate=1.0, schedule=s, steps=10) for s in ("linear", "cosine"))
    assert learning_rate(6, linear) == pytest.approx(0.5)
    assert learning_rate(6, cosine) == pytest.approx(0.5)
    assert learning_rate(1, cosine) == 1.0
