"""Every long sum against float64 at full size: none is one chain, whatever the kernel does.

In one chain of n equal terms the roundings of a sum near its end all go one way: up to n/2 units of float32
(6e-8 of the value). Two levels of at most 1,024 terms stay within 2e-5 of any of them.

Shapes: P rows, F columns.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from janus.model.kernels.cpu_gradients import AddBias, column_sum
from janus.model.layers import Embedding, LayerNorm, RMSNorm
from janus.model.loss import SummedCrossEntropy
from janus.model.vq import Grid, GroupNorm
from janus.model.weights import Weights, random_source
from trainer.step import _sum_of_squares

BOUND = 2e-5
TOKENS = 8 * 576 + 37


def _values(kind: str, *shape: int) -> np.ndarray:
    if kind == "constant":
        return np.full(shape, 0.7, np.float32)
    return np.random.default_rng(0).standard_normal(shape, np.float32) + np.float32(1)


def _compare(ours: Tensor, exact: np.ndarray) -> None:
    ours = ours.asnumpy().astype(np.float64)
    assert np.abs(ours.reshape(exact.shape) - exact).max() <= BOUND * np.abs(exact).max()


def _weights() -> Weights:
    return Weights(random_source(0))


def _gradient(cell: Callable, weight: Tensor, x: Tensor, dy: Tensor) -> Tensor:
    """Of `weight`, a parameter of the Cell, where the output's gradient is dy."""

    def weighed(x: Tensor) -> Tensor:
        return (cell(x) * dy).sum()

    return ms.grad(weighed, None, weight)(x)


@pytest.mark.parametrize("kind", ["constant", "noise"])
def test_column_sum(kind: str) -> None:
    for rows in (1024, 1025, TOKENS, 384 * 384):
        x_PF = _values(kind, rows, 32)
        _compare(column_sum(Tensor(x_PF)), x_PF.astype(np.float64).sum(0))


@pytest.mark.parametrize("kind", ["constant", "noise"])
@pytest.mark.parametrize("shape", [(102_400, 2048), (16_384,), (2048, 5632)])
def test_gradient_norm(kind: str, shape: tuple[int, ...]) -> None:
    x = _values(kind, *shape)
    exact = sum(np.square(block.astype(np.float64)).sum() for block in np.array_split(x, 64))
    _compare(_sum_of_squares(Tensor(x)), np.array(exact))


@pytest.mark.parametrize("kind", ["constant", "noise"])
def test_group_norm_over_a_whole_picture(kind: str) -> None:
    """The output: what the mean is off by counts in units of the deviation, 1 here."""
    norm = GroupNorm(_weights(), 128, Grid(1, 384))
    x_PF = _values(kind, 384 * 384, 128)
    x_PF[:, ::2] += 2
    groups = x_PF.reshape(-1, 32, 4).astype(np.float64)
    exact = (groups - groups.mean((0, 2), keepdims=True)) / np.sqrt(groups.var((0, 2), keepdims=True) + 1e-6)
    _compare(norm(Tensor(x_PF)), exact.reshape(x_PF.shape))


@pytest.mark.parametrize("kind", ["constant", "noise"])
def test_gradients_of_biases_and_norms(kind: str) -> None:
    x_PF = np.random.default_rng(1).standard_normal((TOKENS, 64), np.float32)
    dy_PF = _values(kind, TOKENS, 64)
    exact = dy_PF.astype(np.float64).sum(0)

    def biased(bias_F: Tensor) -> Tensor:
        return (AddBias()(Tensor(x_PF), bias_F) * Tensor(dy_PF)).sum()

    _compare(ms.grad(biased)(Tensor(np.zeros(64, np.float32))), exact)
    layer = LayerNorm(_weights(), 64, 1e-6)
    _compare(_gradient(layer, layer.bias, Tensor(x_PF), Tensor(dy_PF)), exact)
    rms = RMSNorm(_weights(), 64, 1e-6)
    x_PF = np.ones_like(x_PF) if kind == "constant" else x_PF + 3
    wide_PF = x_PF.astype(np.float64)
    normed_PF = wide_PF / np.sqrt(np.square(wide_PF).mean(-1, keepdims=True) + 1e-6)
    _compare(_gradient(rms, rms.weight, Tensor(x_PF), Tensor(dy_PF)), (normed_PF * dy_PF).sum(0))


def test_gradient_of_one_code_that_fills_eight_pictures() -> None:
    table = Embedding(_weights(), 16, 8, repeats=True)
    dy = Tensor(np.full((TOKENS, 8), 0.7, np.float32))
    gradient = _gradient(table, table.weight, Tensor(np.full(TOKENS, 3, np.int32)), dy)
    _compare(gradient[3], np.full(8, TOKENS * float(np.float32(0.7))))


@pytest.mark.parametrize("kind", ["constant", "noise"])
def test_summed_loss(kind: str) -> None:
    logits_NV = _values(kind, TOKENS, 512) * np.float32(kind == "noise")
    labels_N = np.arange(TOKENS, dtype=np.int32) % 512
    wide_NV = logits_NV.astype(np.float64)
    exact = np.log(np.exp(wide_NV).sum(-1)) - wide_NV[np.arange(TOKENS), labels_N]
    _compare(SummedCrossEntropy()(Tensor(logits_NV), Tensor(labels_N))[0], exact.sum())
