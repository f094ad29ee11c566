"""Cells whose backward is written out, for `cpu.py`: automatic differentiation builds slow graphs of them.

A backward reuses what its forward has computed: such a value is given behind the result, and a Cell's
docstring says that it is kept. An input without a gradient gets zeros, which nobody reads.

Shapes: P flat tokens, D width, B rows, H heads, S slots, K head width, F inner width,
N states that predict, V classes.
"""

import numpy as np
from mindspore import Tensor, nn, ops

from janus.model.kernels import plain
from janus.model.kernels.plain import ROOT_HALF, Tensors

# Primitives, not their functions: `ops.gather` inside a written-out backward does not always build.
_gather = ops.Gather()
_matmul = ops.MatMul()
_matmul_transposed = ops.MatMul(transpose_b=True)
_batch_matmul = ops.BatchMatMul()
_batch_matmul_transposed = ops.BatchMatMul(transpose_b=True)
_transposed_batch_matmul = ops.BatchMatMul(transpose_a=True)
_softmax = ops.Softmax(-1)
_top = ops.ArgMaxWithValue(axis=1, keep_dims=True)

DENSITY_AT_0 = (2 * np.pi) ** -0.5  # of the standard normal distribution

CHAIN = 1024
"""Most terms that one product with a row of ones adds up: some kernels add them in one chain."""


class WeightedSum(nn.Cell):
    """Weights (1, P) times rows (P, F), (1, F), in two levels where the rows are more than CHAIN.

    A Cell for each user: MindSpore cannot compile backwards that share a function with branches.
    """

    def construct(self, weight_1P: Tensor, x_PF: Tensor) -> Tensor:
        rows, width = x_PF.shape
        if rows <= CHAIN:
            return _matmul(weight_1P, x_PF)
        whole = rows // CHAIN * CHAIN
        weight_Q1C = weight_1P[:, :whole].reshape(-1, 1, CHAIN)
        sums_QF = _batch_matmul(weight_Q1C, x_PF[:whole].reshape(-1, CHAIN, width)).reshape(-1, width)
        if whole < rows:
            sums_QF = ops.concat((sums_QF, _matmul(weight_1P[:, whole:], x_PF[whole:])), 0)
        return _matmul(ops.ones((1, sums_QF.shape[0]), x_PF.dtype), sums_QF)


_sum_rows = WeightedSum()


def column_sum(x_PF: Tensor) -> Tensor:
    """Σ over the rows, (1, F), for a forward; a backward has a `WeightedSum` of its own."""
    return _sum_rows(ops.ones((1, x_PF.shape[0]), x_PF.dtype), x_PF)


def row_sum(x_PF: Tensor) -> Tensor:
    """Σ of each row, (P, 1), as products of at most CHAIN terms: the CPU's ReduceSum is far slower."""
    rows, width = x_PF.shape
    if width <= CHAIN:
        return _matmul(x_PF, ops.ones((width, 1), x_PF.dtype))
    left = width % CHAIN
    whole_PF = x_PF[:, : width - left] if left else x_PF
    sums_PQ = _matmul(whole_PF.reshape(-1, CHAIN), ops.ones((CHAIN, 1), x_PF.dtype)).reshape(rows, -1)
    if left:
        rest_P1 = _matmul(x_PF[:, width - left :], ops.ones((left, 1), x_PF.dtype))
        sums_PQ = ops.concat((sums_PQ, rest_P1), 1)
    return column_sum(ops.transpose(sums_PQ, (1, 0))).reshape(-1, 1)


class AddBias(nn.Cell):
    """x + b; the gradient of b is a matrix product."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.sum = WeightedSum()

    def construct(self, x_PF: Tensor, bias_F: Tensor) -> Tensor:
        return ops.bias_add(x_PF, bias_F)

    def bprop(self, x_PF: Tensor, bias_F: Tensor, out: Tensor, dout: Tensor) -> Tensors:
        return dout, self.sum(ops.ones((1, dout.shape[0]), dout.dtype), dout).reshape(-1)


class RMSNorm(nn.Cell):
    """x · rsqrt(mean(x²) + ε) · w; the reciprocal root is kept for the backward."""

    def __init__(self, eps: float) -> None:
        super().__init__(auto_prefix=False)
        self.eps = eps
        self.sum = WeightedSum()

    def construct(self, x_PD: Tensor, weight_D: Tensor) -> Tensors:
        mean_D1 = ops.full((x_PD.shape[1], 1), 1 / x_PD.shape[1], dtype=x_PD.dtype)
        root_P1 = ops.rsqrt(_matmul(ops.square(x_PD), mean_D1) + self.eps)
        return x_PD * _matmul(root_P1, weight_D.reshape(1, -1)), root_P1

    def bprop(self, x_PD: Tensor, weight_D: Tensor, out: Tensor, dout: Tensor) -> Tensors:
        dy_PD, root_P1 = dout[0], out[1]
        ones_1D = ops.ones((1, x_PD.shape[1]), x_PD.dtype)
        dyx_PD = dy_PD * x_PD
        dweight_D = self.sum(root_P1.reshape(1, -1), dyx_PD).reshape(-1)
        dscale_P1 = _matmul(dyx_PD, weight_D.reshape(-1, 1))
        pull_P1 = dscale_P1 * (root_P1 * root_P1 * root_P1) * (1 / x_PD.shape[1])
        towards_PD = dy_PD * _matmul(root_P1, weight_D.reshape(1, -1))
        return towards_PD - x_PD * _matmul(pull_P1, ones_1D), dweight_D


class Rotary(plain.Rotary):
    """x · cos + turn(x) · sin, angles spread over the heads once a step; its backward turns back."""

    def __init__(self, heads: int, head_size: int, theta: float) -> None:
        super().__init__(heads, head_size, theta)
        self.heads, self.head_size, half = heads, head_size, head_size // 2
        turn = np.zeros((head_size, head_size), np.float32)
        turn[half:, :half] = -np.eye(half)
        turn[:half, half:] = np.eye(half)
        self.turn_KK = Tensor(turn)

    def angles(self, position_ids_P: Tensor, scale: float) -> Tensors:
        angles_PK = ops.matmul(position_ids_P.reshape(-1, 1).astype("float32"), self.frequencies_1K)
        cos_PD = ops.tile(ops.cos(angles_PK), (1, self.heads))
        sin_PD = ops.tile(ops.sin(angles_PK), (1, self.heads))
        return cos_PD * scale, sin_PD * scale

    def _turn(self, x_PD: Tensor) -> Tensor:
        turn_KK = self.turn_KK.astype(x_PD.dtype)
        return _matmul(x_PD.reshape(-1, self.head_size), turn_KK).reshape(x_PD.shape)

    def construct(self, x_PD: Tensor, cos_PD: Tensor, sin_PD: Tensor) -> Tensor:
        return x_PD * cos_PD + self._turn(x_PD) * sin_PD

    def bprop(self, x_PD: Tensor, cos_PD: Tensor, sin_PD: Tensor, out: Tensor, dout: Tensor) -> Tensors:
        return dout * cos_PD - self._turn(dout) * sin_PD, ops.zeros_like(cos_PD), ops.zeros_like(sin_PD)


class Attention(nn.Cell):
    """softmax(q kᵀ + mask) v for q that is already scaled; the probabilities are kept."""

    def __init__(self, head_size: int, masked: bool) -> None:
        super().__init__(auto_prefix=False)
        self.masked = masked
        self.ones_K1 = Tensor(np.ones((head_size, 1), np.float32))
        self.softmax = ops.Softmax(-1)

    def construct(self, q_BHSK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask_BHSS: Tensor) -> Tensors:
        scores_BHSS = _batch_matmul_transposed(q_BHSK, k_BHSK).astype("float32")
        if self.masked:
            scores_BHSS = scores_BHSS + mask_BHSS
        probs_BHSS = self.softmax(scores_BHSS).astype(v_BHSK.dtype)
        return _batch_matmul(probs_BHSS, v_BHSK), probs_BHSS

    def bprop(
        self, q_BHSK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask_BHSS: Tensor, out: Tensor, dout: Tensor
    ) -> Tensors:
        out_BHSK, probs_BHSS = out
        dout_BHSK = dout[0]
        # Σ dP·P of a row, without the S×S matrix; it is subtracted within the product, as one more column.
        row_BHS1 = self._sum_heads(dout_BHSK * out_BHSK)
        one_BHS1 = ops.ones_like(row_BHS1)
        left, right = ops.concat((dout_BHSK, -row_BHS1), -1), ops.concat((v_BHSK, one_BHS1), -1)
        dscores_BHSS = _batch_matmul_transposed(left, right) * probs_BHSS
        return (
            _batch_matmul(dscores_BHSS, k_BHSK),
            _transposed_batch_matmul(dscores_BHSS, q_BHSK),
            _transposed_batch_matmul(probs_BHSS, dout_BHSK),
            ops.zeros_like(mask_BHSS),
        )

    def _sum_heads(self, x_BHSK: Tensor) -> Tensor:
        rows, heads, length, head_size = x_BHSK.shape
        ones_K1 = self.ones_K1.astype(x_BHSK.dtype)
        return _matmul(x_BHSK.reshape(-1, head_size), ones_K1).reshape(rows, heads, length, 1)


class Move(nn.Cell):
    """Heads between two places: row i of the output is row `there[i]` of the input.

    `back` is the inverse, so the backward is a gather too, not a scatter. Rows that nothing is read from
    afterwards may be mapped anywhere: their gradient is zero.
    """

    def construct(self, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        return _gather(x.reshape(-1, x.shape[-1]), there, 0)

    def bprop(self, x: Tensor, there: Tensor, back: Tensor, out: Tensor, dout: Tensor) -> Tensors:
        dx = _gather(dout.reshape(-1, dout.shape[-1]), back, 0).reshape(x.shape)
        return dx, ops.zeros_like(there), ops.zeros_like(back)


class SwiGLU(nn.Cell):
    """silu(gate) · up; the sigmoid is kept for the backward."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.sigmoid = ops.Sigmoid()

    def construct(self, gate_PF: Tensor, up_PF: Tensor) -> Tensors:
        sigmoid_PF = self.sigmoid(gate_PF)
        return gate_PF * sigmoid_PF * up_PF, sigmoid_PF

    def bprop(self, gate_PF: Tensor, up_PF: Tensor, out: Tensor, dout: Tensor) -> Tensors:
        d_PF, sigmoid_PF = dout[0], out[1]
        silu_PF = gate_PF * sigmoid_PF
        return d_PF * up_PF * (sigmoid_PF + silu_PF - silu_PF * sigmoid_PF), d_PF * silu_PF


class Gelu(nn.Cell):
    """x · Φ(x); the distribution function is kept for the backward."""

    def construct(self, x: Tensor) -> Tensors:
        below = (ops.erf(x * ROOT_HALF) + 1.0) * 0.5
        return x * below, below

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> Tensors:
        density = ops.exp(ops.square(x) * -0.5) * DENSITY_AT_0
        return (dout[0] * (out[1] + x * density),)


class CrossEntropy(nn.Cell):
    """Σ −log p(label) over the rows whose label is not negative.

    Kept: the kernel's softmax, its row sums, where each row's label is. The gradient is p − onehot.
    """

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.subtract_at = ops.TensorScatterSub()

    def construct(self, logits_NV: Tensor, labels_N: Tensor) -> Tensors:
        nll_N1, _, softmax_NV, total_N1 = negative_log_p(logits_NV, labels_N)
        used_N1 = (labels_N >= 0).astype("float32").reshape(-1, 1)
        # Not in the backward: it would not build with the functions that make it.
        row_N = ops.arange(labels_N.shape[0]).astype(labels_N.dtype)
        label_N2 = ops.stack((row_N, ops.maximum(labels_N, 0)), 1)
        return column_sum(nll_N1 * used_N1).reshape(()), softmax_NV, total_N1, label_N2

    def bprop(self, logits_NV: Tensor, labels_N: Tensor, out: Tensor, dout: Tensor) -> Tensors:
        _, softmax_NV, total_N1, label_N2 = out
        scale_N1 = (labels_N >= 0).astype("float32").reshape(-1, 1) * dout[0]
        ones_1V = ops.ones((1, logits_NV.shape[1]), logits_NV.dtype)
        scaled_NV = softmax_NV * _matmul(scale_N1 / total_N1, ones_1V)
        return self.subtract_at(scaled_NV, label_N2, scale_N1.reshape(-1)), ops.zeros_like(labels_N)


def negative_log_p(logits_NV: Tensor, labels_N: Tensor) -> Tensors:
    """−log p(label), class of the top logit, the kernel's softmax (N, V), its row sums; the rest (N, 1).

    −log p(label) = top − logit(label) − log p(top): p(top) is never tiny, so nothing overflows and its
    logarithm is safe. The kernel may divide by a sum in one chain: p is its softmax over that one's row sum.
    Where a label is negative, the score is that of class 0.
    """
    class_N1, top_N1 = _top(logits_NV)
    softmax_NV = _softmax(logits_NV)
    total_N1 = row_sum(softmax_NV)
    p_top_N1 = ops.gather_d(softmax_NV, 1, class_N1) / total_N1
    logit_N1 = ops.gather_d(logits_NV, 1, ops.maximum(labels_N, 0).reshape(-1, 1))
    return top_N1 - logit_N1 - ops.log(p_top_N1), class_N1, softmax_NV, total_N1
