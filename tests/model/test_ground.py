"""Every long sum against float64 at full size: none is one chain, whatever the kernel does.

In one chain of n equal terms the roundings of a sum near its end all go one way: up to n/2 units of float32
(6e-8 of the value). Two levels of at most 1,024 terms stay within 2e-5 of any of them.

Shapes: P rows, F columns; N states, V classes.
"""

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from janus.model.janus import PlaceImages
from janus.model.kernels.cpu import CrossEntropy, SumOfSquares
from janus.model.kernels.cpu_gradients import AddBias, column_sum, row_sum
from janus.model.layers import Embedding, LayerNorm, RMSNorm
from janus.model.vq import Grid, GroupNorm
from janus.model.weights import Weights, random_source

BOUND = 2e-5
TOKENS = 8 * 576 + 37
WEIGHTS = Weights(random_source(0))
KINDS = pytest.mark.parametrize("kind", ["constant", "noise"])
Disturb = Callable[[np.ndarray], np.ndarray]


def _values(kind: str, *shape: int) -> np.ndarray:
    if kind == "constant":
        return np.full(shape, 0.7, np.float32)
    return np.random.default_rng(0).standard_normal(shape, np.float32) + np.float32(1)


def _compare(ours: Tensor, exact: np.ndarray) -> None:
    difference = ours.asnumpy().astype(np.float64).reshape(exact.shape) - exact
    assert np.abs(difference).max() <= BOUND * np.abs(exact).max()


def _gradient(cell: Callable, weight: Tensor, x: Tensor, dy: Tensor) -> Tensor:
    """Of `weight`, a parameter of the Cell, where the output's gradient is dy."""
    return ms.grad(lambda x: (cell(x) * dy).sum(), None, weight)(x)


@KINDS
def test_column_sum(kind: str, disturb: Disturb) -> None:
    for rows in (1024, 1025, TOKENS, 384 * 384):
        x_PF = disturb(_values(kind, rows, 32))
        _compare(column_sum(Tensor(x_PF)), x_PF.astype(np.float64).sum(0))


@KINDS
def test_row_sum_of_any_width(kind: str) -> None:
    for width in (1, 1024, 1025, 102_397, 1024 * 1024 + 1025):
        x_PF = _values(kind, 2, width)
        _compare(row_sum(Tensor(x_PF)), x_PF.astype(np.float64).sum(1))


@KINDS
@pytest.mark.parametrize("shape", [(102_400, 2048), (16_384,), (2048, 5632), (1_048_583,)])
def test_gradient_norm(kind: str, shape: tuple[int, ...]) -> None:
    x = _values(kind, *shape)
    exact = sum(np.square(block.astype(np.float64)).sum() for block in np.array_split(x, 64))
    _compare(SumOfSquares()(Tensor(x)), np.array(exact))


@KINDS
def test_group_norm_over_a_whole_picture(kind: str, disturb: Disturb) -> None:
    """The output: what the mean is off by counts in units of the deviation, 1 here."""
    norm = GroupNorm(WEIGHTS, 128, Grid(1, 384))
    x_PF = disturb(_values(kind, 384 * 384, 128))
    x_PF[:, ::2] += 2
    groups = x_PF.reshape(-1, 32, 4).astype(np.float64)
    exact = (groups - groups.mean((0, 2), keepdims=True)) / np.sqrt(groups.var((0, 2), keepdims=True) + 1e-6)
    _compare(norm(Tensor(x_PF)), exact.reshape(x_PF.shape))


@KINDS
def test_gradients_of_biases_and_norms(kind: str, disturb: Disturb) -> None:
    x_PF = np.random.default_rng(1).standard_normal((TOKENS, 64), np.float32)
    dy_PF = disturb(_values(kind, TOKENS, 64))
    exact = dy_PF.astype(np.float64).sum(0)
    biased = ms.grad(lambda bias_F: (AddBias()(Tensor(x_PF), bias_F) * Tensor(dy_PF)).sum())
    _compare(biased(Tensor(np.zeros(64, np.float32))), exact)
    layer = LayerNorm(WEIGHTS, 64, 1e-6)
    _compare(_gradient(layer, layer.bias, Tensor(x_PF), Tensor(dy_PF)), exact)
    rms = RMSNorm(WEIGHTS, 64, 1e-6)
    x_PF = np.ones_like(x_PF) if kind == "constant" else x_PF + 3
    wide_PF = x_PF.astype(np.float64)
    normed_PF = wide_PF / np.sqrt(np.square(wide_PF).mean(-1, keepdims=True) + 1e-6)
    _compare(_gradient(rms, rms.weight, Tensor(x_PF), Tensor(dy_PF)), (normed_PF * dy_PF).sum(0))


def test_gradient_of_one_code_that_fills_eight_pictures() -> None:
    table, dy_PF = Embedding(WEIGHTS, 16, 8, repeats=True), _values("constant", TOKENS, 8)
    gradient = _gradient(table, table.weight, Tensor(np.full(TOKENS, 3, np.int32)), Tensor(dy_PF))
    _compare(gradient[3], dy_PF.astype(np.float64).sum(0))


def test_token_slots_that_an_image_fills_give_their_token_no_gradient() -> None:
    """The image token repeats thousands of times; its rows add zeros to the embedding's gradient."""
    text_PD, images_MD = Tensor(np.ones((5, 2), np.float32)), Tensor(np.ones((3, 2), np.float32))
    index_P = Tensor(np.array([0, 1, 2, 3, 0], np.int32))
    place = PlaceImages()
    gradient_PD = ms.grad(lambda text_PD: place(text_PD, images_MD, index_P).sum())(text_PD)
    np.testing.assert_array_equal(gradient_PD.asnumpy()[:, 0], [1, 0, 0, 0, 1])


@pytest.mark.parametrize("classes", [102_400, 16_384])
@pytest.mark.parametrize("kind", ["constant", "one above", "one sure", "noise"])
def test_cross_entropy_over_all_classes(kind: str, classes: int) -> None:
    """The loss, and every entry of the gradient in units of its own size."""
    logits_NV = _values("noise" if kind == "noise" else "constant", 8, classes)
    labels_N = np.array([7, 7, 0, classes - 1, 7, 9, -100, 7], np.int32)
    logits_NV[:, 7] += {"one above": 1.3, "one sure": np.log(classes)}.get(kind, 0)
    used_N = labels_N >= 0
    wide_NV = logits_NV.astype(np.float64)
    p_NV = np.exp(wide_NV - wide_NV.max(-1, keepdims=True))
    p_NV /= p_NV.sum(-1, keepdims=True)
    onehot_NV = np.arange(classes) == labels_N[:, None]
    value, gradient = ms.value_and_grad(lambda x: CrossEntropy()(x, Tensor(labels_N)))(Tensor(logits_NV))
    _compare(value, -np.log(p_NV[onehot_NV]).sum())
    exact_NV = (p_NV - onehot_NV) * used_N[:, None]
    assert (np.abs(gradient.asnumpy() - exact_NV) <= BOUND * np.abs(exact_NV)).all()


@KINDS
def test_summed_loss(kind: str, disturb: Disturb) -> None:
    logits_NV = disturb(_values(kind, TOKENS, 512)) * np.float32(kind == "noise")
    labels_N = np.arange(TOKENS, dtype=np.int32) % 512
    wide_NV = logits_NV.astype(np.float64)
    exact = np.log(np.exp(wide_NV).sum(-1)) - wide_NV[np.arange(TOKENS), labels_N]
    _compare(CrossEntropy()(Tensor(logits_NV), Tensor(labels_N)), exact.sum())
