"""The optimizer step against PyTorch's formulas in float64, and what it costs in memory."""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops

from trainer.config import TrainConfig
from trainer.step import NUMBERS, _like, _Measure, _Update, adamw_rates, clip_factor

CONFIG = replace(TrainConfig(), device="CPU")


def _numbers() -> Parameter:
    return Parameter(Tensor(np.zeros(len(NUMBERS), np.float32)), name="numbers")


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
    weight = Parameter(Tensor(start.copy()), name="w")
    buffers = _like([weight], "gradient")
    numbers = _numbers()
    measure, update = _Measure(buffers, numbers), _Update([weight], buffers, numbers, config)
    for step, gradient in enumerate(gradients, 1):
        ops.assign(buffers[0], Tensor(gradient))
        norm = float(measure().asnumpy()[NUMBERS["grad_norm"]])
        factors = (clip_factor(norm, config.clip_norm), *adamw_rates(step, 1e-2, config))
        update(*(Tensor(np.float32(x)) for x in factors))
        assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
        assert not buffers[0].asnumpy().any()
    np.testing.assert_allclose(
        weight.asnumpy(), _reference(start, gradients, 1e-2, config), rtol=0, atol=2e-6
    )


def test_a_thousand_small_steps_move_a_weight_as_far_as_they_should() -> None:
    """At 1e-5 a bfloat16 weight of 1.0 would never move: the step is below half its last digit."""
    weight = Parameter(Tensor(np.ones(1, np.float32)), name="w")
    buffers = _like([weight], "gradient")
    update = ms.jit(_Update([weight], buffers, _numbers(), CONFIG).construct)
    for step in range(1, 1001):
        ops.assign(buffers[0], Tensor(np.full(1, 0.5, np.float32)))
        update(*(Tensor(np.float32(x)) for x in (1.0, *adamw_rates(step, 1e-5, CONFIG))))
    expected = _reference(np.ones(1), np.full((1000, 1), 0.5), 1e-5, CONFIG)
    assert expected[0] == pytest.approx(0.99, abs=1e-6)
    assert weight.asnumpy()[0] == pytest.approx(expected[0], abs=2e-5)
