"""What the CPU's forms would give in bfloat16: an operation, a kernel, a rounding.

Shapes: P flat tokens, H heads, S tokens, K head width.
"""

import numpy as np
from scipy.special import erf

from bench.ascend.emulation.forms import Arrays, transposed
from bench.ascend.emulation.rounding import to_bfloat16


def gelu(x: np.ndarray) -> Arrays:
    """x · ((1 + erf(x / √2)) / 2) and the second factor, operation by operation.

    `ops.gelu(x, "none")` of MindSpore 2.10 is the same chain (mindspore/ops/function/nn_func.py):
    1 + erf cancels where x is below −1.
    """
    found = to_bfloat16(erf(to_bfloat16(x * np.float32(2**-0.5))))
    below = to_bfloat16(to_bfloat16(found + 1) * 0.5)
    return to_bfloat16(x * below), below


def gelu_gradient(dy: np.ndarray, x: np.ndarray, below: np.ndarray) -> np.ndarray:
    """dy · (Φ(x) + x · density), operation by operation, as `cpu_gradients.Gelu`."""
    density = to_bfloat16(np.exp(to_bfloat16(to_bfloat16(np.square(x)) * -0.5)))
    density = to_bfloat16(density * np.float32((2 * np.pi) ** -0.5))
    return to_bfloat16(dy * to_bfloat16(below + to_bfloat16(x * density)))


def attention(q_HSK: np.ndarray, k_HSK: np.ndarray, v_HSK: np.ndarray) -> np.ndarray:
    """softmax(q kᵀ) v with causal mask, for q already scaled: its product rounds the scores as well."""
    probs_HSS = probabilities(to_bfloat16(np.matmul(q_HSK, transposed(k_HSK))))
    return to_bfloat16(np.matmul(probs_HSS, v_HSK))


def probabilities(scores_HSS: np.ndarray) -> np.ndarray:
    """Causal softmax in float32, rounded."""
    seen_SS = np.tri(scores_HSS.shape[-1], dtype=bool)
    weights_HSS = np.exp(np.where(seen_SS, scores_HSS - scores_HSS.max(-1, keepdims=True), -np.inf))
    return to_bfloat16(weights_HSS / weights_HSS.sum(-1, keepdims=True))


def attention_gradient(
    dout_HSK: np.ndarray, q_HSK: np.ndarray, k_HSK: np.ndarray, v_HSK: np.ndarray, kept: Arrays
) -> Arrays:
    """Gradients of q, k, v as `cpu_gradients.Attention` has them. kept: out and the probabilities.

    Σ dout · out of a row is rounded twice, to be subtracted within the product as column K + 1.
    """
    out_HSK, probs_HSS = kept
    row_HS1 = to_bfloat16(to_bfloat16(dout_HSK * out_HSK).sum(-1, keepdims=True))
    left = np.concatenate((dout_HSK, -row_HS1), -1)
    right = np.concatenate((v_HSK, np.ones_like(row_HS1)), -1)
    dscores_HSS = to_bfloat16(to_bfloat16(np.matmul(left, transposed(right))) * probs_HSS)
    return (
        to_bfloat16(np.matmul(dscores_HSS, k_HSK)),
        to_bfloat16(np.matmul(transposed(dscores_HSS), q_HSK)),
        to_bfloat16(np.matmul(transposed(probs_HSS), dout_HSK)),
    )


def embed_gradient(dy_PD: np.ndarray, ids_P: np.ndarray, rows: int) -> np.ndarray:
    """The gradient of a table, added up in bfloat16: what `UnsortedSegmentSum` of bfloat16 rows would be."""
    dtable_VD = np.zeros((rows, dy_PD.shape[1]), np.float32)
    for dy_D, row in zip(dy_PD, ids_P, strict=True):
        dtable_VD[row] = to_bfloat16(dtable_VD[row] + dy_D)
    return dtable_VD
