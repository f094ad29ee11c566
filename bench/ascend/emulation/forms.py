"""The forms of `janus/model/kernels/ascend.py` in NumPy, forward and backward, rounding where CANN does.

Each takes an `Arithmetic` first: with EXACT it is the definition in float64 (tests hold it against
`plain.py`), with BFLOAT16 what an Atlas A2 computes, as far as CANN's sources say. A docstring names where it
rounds and the file that says so: of gitcode.com/cann/ops-nn or ops-transformer, or an operator's page on
hiascend.com. What every form has in common: bfloat16 in and out, float32 inside, each result rounded once.

Shapes: P flat tokens, D width, F inner width, H heads, K head width, S tokens of a segment, N states that
predict, V classes.
"""

import numpy as np
from scipy.special import erf

from bench.ascend.emulation.rounding import Arithmetic

Arrays = tuple[np.ndarray, ...]


def product(a: Arithmetic, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x y, summed in float32, rounded once (MatMul, BatchMatMul: the cube's accumulator is float32)."""
    return a.store(np.matmul(*a.load(x, y)))


def rms_norm(a: Arithmetic, x_PD: np.ndarray, weight_D: np.ndarray, eps: float) -> Arrays:
    """(x / √(mean(x²) + ε) · w, 1 / √(mean(x²) + ε)); the root stays float32.

    Rounds once, at the end (ops-nn, norm/rms_norm/op_kernel/rms_norm.h: CAST_RINT behind the weight).
    """
    x_PD, weight_D = a.load(x_PD, weight_D)
    root_P1 = 1 / np.sqrt(np.square(x_PD).mean(-1, keepdims=True) + a.inner(eps))
    return a.store(x_PD * root_P1 * weight_D), root_P1


def add_rms_norm(
    a: Arithmetic, x_PD: np.ndarray, branch_PD: np.ndarray, weight_D: np.ndarray, eps: float
) -> Arrays:
    """(x + branch, its RMS norm, the root): what MindSpore's compiler makes of a sum and the norm behind it.

    The sum is rounded for memory, but normed as it was; normed, it is rounded before and behind the weight
    (ops-nn, norm/add_rms_norm/op_kernel/add_rms_norm.h, CAST_RINT). The gradient is that of the two apart.
    """
    x_PD, branch_PD, weight_D = a.load(x_PD, branch_PD, weight_D)
    total_PD = x_PD + branch_PD
    root_P1 = 1 / np.sqrt(np.square(total_PD).mean(-1, keepdims=True) + a.inner(eps))
    return a.store(total_PD), a.store(a.store(total_PD * root_P1) * weight_D), root_P1


def rms_norm_gradient(
    a: Arithmetic, dy_PD: np.ndarray, x_PD: np.ndarray, root_P1: np.ndarray, weight_D: np.ndarray
) -> Arrays:
    """Gradients of x and of the weight, which is float32.

    dy · w is rounded before the row's mean; x · root, and its product with dy, before they are added up for
    the weight (ops-nn, norm/rms_norm_grad/op_kernel/rms_norm_grad_split_n.h, ComputeMainBf16).
    """
    dy_PD, x_PD, weight_D = a.load(dy_PD, x_PD, weight_D)
    normed_PD, towards_PD = x_PD * root_P1, a.store(dy_PD * weight_D)
    mean_P1 = (towards_PD * normed_PD).mean(-1, keepdims=True)
    dweight_D = a.store(dy_PD * a.store(normed_PD)).sum(0)
    return a.store((towards_PD - normed_PD * mean_P1) * root_P1), dweight_D


def layer_norm(
    a: Arithmetic, x_PD: np.ndarray, weight_D: np.ndarray, bias_D: np.ndarray, eps: float
) -> np.ndarray:
    """(x − mean) / √(variance + ε) · w + b.

    Rounds once (ops-nn, norm/layer_norm_v4/op_kernel/layer_norm_v4_single_read.h, CAST_ROUND).
    """
    normed_PD, _ = _normed(a, x_PD, eps)
    return a.cast(normed_PD * weight_D + bias_D)


def layer_norm_gradient(
    a: Arithmetic, dy_PD: np.ndarray, x_PD: np.ndarray, weight_D: np.ndarray, eps: float
) -> Arrays:
    """Gradients of x, of weight and of bias; each is rounded once (…/layer_norm_grad_v3/op_kernel)."""
    normed_PD, root_P1 = _normed(a, x_PD, eps)
    (dy_PD,) = a.load(dy_PD)
    towards_PD = dy_PD * weight_D
    means_P1 = [part.mean(-1, keepdims=True) for part in (towards_PD, towards_PD * normed_PD)]
    dx_PD = (towards_PD - means_P1[0] - normed_PD * means_P1[1]) * root_P1
    return a.store(dx_PD), a.store((dy_PD * normed_PD).sum(0)), a.store(dy_PD.sum(0))


def _normed(a: Arithmetic, x_PD: np.ndarray, eps: float) -> Arrays:
    (x_PD,) = a.load(x_PD)
    centred_PD = x_PD - x_PD.mean(-1, keepdims=True)
    root_P1 = 1 / np.sqrt(np.square(centred_PD).mean(-1, keepdims=True) + a.inner(eps))
    return centred_PD * root_P1, root_P1


def angles(positions_P: np.ndarray, head_size: int, theta: float = 10_000.0) -> Arrays:
    """cos and sin (P, 1, K) of each token's angles, halves layout."""
    half = head_size // 2
    angles_PK = positions_P[:, None] * np.tile(theta ** -(np.arange(half) / half), 2)
    return np.cos(angles_PK)[:, None], np.sin(angles_PK)[:, None]


def rotary(a: Arithmetic, x_PHK: np.ndarray, cos_P1K: np.ndarray, sin_P1K: np.ndarray) -> np.ndarray:
    """x · cos + (−second half, first half) · sin, mode 0.

    Rounds once (ops-transformer, posembedding/rotary_position_embedding/op_kernel/rotate_half_bf16.h); cos
    and sin are inputs, so they are bfloat16 as well.
    """
    x_PHK, cos_P1K, sin_P1K = a.load(x_PHK, a.store(cos_P1K), a.store(sin_P1K))
    first, second = np.split(x_PHK, 2, -1)
    return a.store(x_PHK * cos_P1K + np.concatenate((-second, first), -1) * sin_P1K)


def rotary_gradient(
    a: Arithmetic, dy_PHK: np.ndarray, cos_P1K: np.ndarray, sin_P1K: np.ndarray
) -> np.ndarray:
    """The gradient of x; rounds as `rotary` does (…_grad/op_kernel/rotate_half_grad.h)."""
    dy_PHK, cos_P1K, sin_P1K = a.load(dy_PHK, a.store(cos_P1K), a.store(sin_P1K))
    first, second = np.split(dy_PHK * sin_P1K, 2, -1)
    return a.store(dy_PHK * cos_P1K + np.concatenate((second, -first), -1))


def swiglu(a: Arithmetic, both_P2F: np.ndarray) -> np.ndarray:
    """silu(first half) · second half.

    Rounds once (ops-nn, activation/swi_glu/op_kernel/swi_glu_bf16.hpp, CAST_RINT).
    """
    (both_P2F,) = a.load(both_P2F)
    gate_PF, up_PF = np.split(both_P2F, 2, -1)
    return a.store(gate_PF * _sigmoid(gate_PF) * up_PF)


def swiglu_gradient(a: Arithmetic, dy_PF: np.ndarray, both_P2F: np.ndarray) -> np.ndarray:
    """The gradient of both halves; rounds once (…/swi_glu_grad/op_kernel/swi_glu_grad_bf16.hpp)."""
    dy_PF, both_P2F = a.load(dy_PF, both_P2F)
    gate_PF, up_PF = np.split(both_P2F, 2, -1)
    sigmoid_PF = _sigmoid(gate_PF)
    slope_PF = sigmoid_PF * (1 + gate_PF * (1 - sigmoid_PF))
    return a.store(np.concatenate((dy_PF * up_PF * slope_PF, dy_PF * gate_PF * sigmoid_PF), -1))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gelu(a: Arithmetic, x: np.ndarray) -> np.ndarray:
    """x · Φ(x), the error-function form: `aclnnGeluV2` with approximate 0 (`aclnnGelu` is the tanh form).

    Cast to float32, computed in it, cast back (ops-nn, activation/gelu_v2; CANN's TBE operator gelu_v2.py).
    Here Φ is exact; there it is 1 / (1 + exp(polynomial)): off by 1.2e-7 of 1, and down to x = −4 by 5e-4 of
    Φ, an eighth of what one rounding may be. Below −4 only the absolute figure holds.
    """
    (x,) = a.load(x)
    return a.store(x * below(x))


def gelu_gradient(a: Arithmetic, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """dy · (Φ(x) + x · density); `aclnnGeluBackwardV2`, cast and rounded as `gelu`."""
    dy, x = a.load(dy, x)
    density = np.exp(-np.square(x) / 2) * (2 * np.pi) ** -0.5
    return a.store(dy * (below(x) + x * density).astype(a.inner))


def below(x: np.ndarray) -> np.ndarray:
    """Φ(x), precise to the last digit of the dtype of x."""
    return (0.5 * (1 + erf(x.astype(np.float64) * 2**-0.5))).astype(x.dtype)


def segments(ends: np.ndarray) -> list[slice]:
    """The tokens of each segment. ends: cumulative, as `actual_seq_qlen` has them."""
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def attention(a: Arithmetic, qkv: Arrays, ends: np.ndarray, scale: float, causal: bool) -> Arrays:
    """softmax(scale · q kᵀ) v of each segment; then the rows' largest scores and sums of exp, (P, H, 1).

    qkv: (P, H, K) each. causal: a token sees its segment up to itself (sparse_mode 3, as many queries as
    keys).

    Scores, exp, its sum and the division behind the last product are float32; exp(score − largest) is
    rounded for its product with v, not yet divided (ops-transformer,
    attention/flash_attention_score/op_kernel/arch22 (A2), …_s1s2_bn2gs1.h, ProcessVec1: CAST_ROUND).
    """
    q_PHK, k_PHK, v_PHK = qkv
    out_PHK, top_PH1, sum_PH1 = np.empty_like(q_PHK), *np.empty((2, *q_PHK.shape[:2], 1), a.inner)
    for own in segments(ends):
        scores_HSS = _scores(a, q_PHK[own], k_PHK[own], scale, causal)
        top_HS1 = scores_HSS.max(-1, keepdims=True)
        weights_HSS = np.exp(scores_HSS - top_HS1)
        sum_HS1 = weights_HSS.sum(-1, keepdims=True)
        out_HSK = np.matmul(a.cast(weights_HSS), _by_head(*a.load(v_PHK[own]))) / sum_HS1
        out_PHK[own], top_PH1[own], sum_PH1[own] = map(_by_token, (a.store(out_HSK), top_HS1, sum_HS1))
    return out_PHK, top_PH1, sum_PH1


def attention_gradient(
    a: Arithmetic,
    dout_PHK: np.ndarray,
    qkv: Arrays,
    kept: Arrays,
    ends: np.ndarray,
    scale: float,
    causal: bool,
) -> Arrays:
    """Gradients of q, k and v. kept: what `attention` gave.

    Probabilities are computed anew. Σ dout · out of a row is float32, and subtracted in float32;
    probabilities and gradients of scores are rounded for the three products behind them, scaled in float32
    (…/flash_attention_score_grad/op_kernel/arch22/basic_modules/vec_op_fasg_arch22.h, SubGrapA, SubGrapB).
    """
    (q_PHK, k_PHK, v_PHK), (out_PHK, top_PH1, sum_PH1) = qkv, kept
    gradients = [np.empty_like(x_PHK) for x_PHK in qkv]
    for own in segments(ends):
        top_HS1, sum_HS1 = _by_head(top_PH1[own]), _by_head(sum_PH1[own])
        probs_HSS = np.exp(_scores(a, q_PHK[own], k_PHK[own], scale, causal) - top_HS1) / sum_HS1
        arrays = a.load(dout_PHK[own], out_PHK[own], q_PHK[own], k_PHK[own], v_PHK[own])
        dout_HSK, out_HSK, q_HSK, k_HSK, v_HSK = map(_by_head, arrays)
        row_HS1 = (dout_HSK * out_HSK).sum(-1, keepdims=True)
        dscores_HSS = a.cast(probs_HSS * (np.matmul(dout_HSK, transposed(v_HSK)) - row_HS1))
        found = (
            np.matmul(dscores_HSS, k_HSK) * a.inner(scale),
            np.matmul(transposed(dscores_HSS), q_HSK) * a.inner(scale),
            np.matmul(transposed(a.cast(probs_HSS)), dout_HSK),
        )
        for gradient_PHK, own_HSK in zip(gradients, found, strict=True):
            gradient_PHK[own] = _by_token(a.store(own_HSK))
    return tuple(gradients)


def _scores(a: Arithmetic, q_SHK: np.ndarray, k_SHK: np.ndarray, scale: float, causal: bool) -> np.ndarray:
    """Scaled scores (H, S, S) in float32, −∞ where a token does not see."""
    q_HSK, k_HSK = map(_by_head, a.load(q_SHK, k_SHK))
    scores_HSS = np.matmul(q_HSK, transposed(k_HSK)) * a.inner(scale)
    if causal:
        scores_HSS[:, np.triu(np.ones(scores_HSS.shape[1:], bool), 1)] = -np.inf
    return scores_HSS


def transposed(x_HSK: np.ndarray) -> np.ndarray:
    """The last two axes exchanged."""
    return x_HSK.swapaxes(-1, -2)


def _by_head(x_SHK: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x_SHK.transpose(1, 0, 2))


def _by_token(x_HSK: np.ndarray) -> np.ndarray:
    return x_HSK.transpose(1, 0, 2)


def cross_entropy(a: Arithmetic, logits_NV: np.ndarray, labels_N: np.ndarray) -> tuple[float, np.ndarray]:
    """Σ −log p(label) over the labels that are not negative, and log p (N, V): all float32."""
    (logits_NV,) = a.load(logits_NV)
    shifted_NV = logits_NV - logits_NV.max(-1, keepdims=True)
    log_p_NV = shifted_NV - np.log(np.exp(shifted_NV).sum(-1, keepdims=True))
    used = np.flatnonzero(labels_N >= 0)
    return float(-log_p_NV[used, labels_N[used]].sum()), log_p_NV


def cross_entropy_gradient(
    a: Arithmetic, dloss: float, log_p_NV: np.ndarray, labels_N: np.ndarray
) -> np.ndarray:
    """(p − onehot) · dloss in float32, rounded on its way into the head's product; 0 in unused rows."""
    dlogits_NV = np.exp(log_p_NV)
    used = np.flatnonzero(labels_N >= 0)
    dlogits_NV[used, labels_N[used]] -= 1
    return a.store(dlogits_NV * (labels_N >= 0).astype(a.inner)[:, None] * a.inner(dloss))


def embed_gradient(a: Arithmetic, dy_PD: np.ndarray, ids_P: np.ndarray, rows: int) -> np.ndarray:
    """The gradient of a table of rows: sums of bfloat16 rows in float32."""
    dtable_VD = np.zeros((rows, dy_PD.shape[1]), a.inner)
    np.add.at(dtable_VD, ids_P, *a.load(dy_PD))
    return dtable_VD
