"""The operations of MindSpore that only CANN has kernels for, in NumPy, so that they run op by op on a CPU.

Each has the signature of MindSpore's own, computes what its documentation says (the forms of
`bench/ascend/emulation`) and refuses what the documentation refuses. In bfloat16 they round as CANN does; in
every other type they compute in float64. They stand in for third-party kernels alone:
`janus/model/kernels/ascend.py` itself runs as it is, but for the sum in the gradient of a bias.
"""

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, mint, nn, ops

from bench.ascend.emulation import forms
from bench.ascend.emulation.rounding import BFLOAT16, EXACT, Arithmetic
from janus.model import kernels, layers
from janus.model.kernels import ascend

Arrays = tuple[np.ndarray, ...]


class _Operation(nn.Cell):
    """forward: arrays to the result. backward: the result's gradient to those of the first arrays.

    A Cell a call: what forward keeps for backward is the closure's.
    """

    def __init__(
        self, forward: Callable[..., np.ndarray], backward: Callable[[np.ndarray], Arrays | np.ndarray]
    ) -> None:
        super().__init__(auto_prefix=False)
        self.forward, self.backward = forward, backward

    def construct(self, *tensors: Tensor) -> Tensor:
        return _tensor(self.forward(*map(_array, tensors)), tensors[0])

    def bprop(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        *tensors, _, dout = arguments
        gradients = self.backward(_array(dout))
        if isinstance(gradients, np.ndarray):
            gradients = (gradients,)
        found = [_tensor(gradient, x) for gradient, x in zip(gradients, tensors, strict=False)]
        return (*found, *(ops.zeros_like(x) for x in tensors[len(found) :]))


def _array(x: Tensor) -> np.ndarray:
    """float32 of bfloat16, whose values NumPy does not have; integers; else float64."""
    if x.dtype == ms.bfloat16:
        return x.astype(ms.float32).asnumpy()
    array = x.asnumpy()
    return array if array.dtype.kind == "i" else array.astype(np.float64)


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    if like.dtype == ms.bfloat16:
        return Tensor(array.astype(np.float32)).astype(ms.bfloat16)
    return Tensor(array, like.dtype)


def _arithmetic(*tensors: Tensor) -> Arithmetic:
    """How tensors of one type are computed with."""
    _require(len({tensor.dtype for tensor in tensors}) == 1, "one dtype")
    return BFLOAT16 if tensors[0].dtype == ms.bfloat16 else EXACT


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, None]:
    """`ops.rms_norm`; without its second result, the root."""
    a, kept = _arithmetic(x, gamma), ()

    def forward(x_PD: np.ndarray, weight_D: np.ndarray) -> np.ndarray:
        nonlocal kept
        y_PD, root_P1 = forms.rms_norm(a, x_PD, weight_D, epsilon)
        kept = x_PD, root_P1, weight_D
        return y_PD

    return _Operation(forward, lambda dy: forms.rms_norm_gradient(a, dy, *kept))(x, gamma), None


def swiglu(input: Tensor, dim: int = -1) -> Tensor:
    """`ops.swiglu` over the last axis."""
    _require(dim == -1, "dim -1")
    a, both = _arithmetic(input), _array(input)
    return _Operation(lambda both: forms.swiglu(a, both), lambda dy: forms.swiglu_gradient(a, dy, both))(
        input
    )


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """`mint.nn.functional.gelu`, the error-function form."""
    _require(approximate == "none", "approximate none")
    a, x = _arithmetic(input), _array(input)
    return _Operation(lambda x: forms.gelu(a, x), lambda dy: forms.gelu_gradient(a, dy, x))(input)


def rotary_position_embedding(x: Tensor, cos: Tensor, sin: Tensor, mode: int = 0) -> Tensor:
    """`ops.rotary_position_embedding` of BSND, cos and sin (1, S, 1, D), whose own gradient is left at 0."""
    _require(mode == 0, "mode 0")
    batch, length, _, size = x.shape
    _require(cos.shape == sin.shape == (1, length, 1, size), "angles (1, S, 1, D)")
    _require(batch == 1 and size % 2 == 0 and size < 896, "one batch, even D below 896")
    a, turns = _arithmetic(x, cos, sin), [_array(angles)[0] for angles in (cos, sin)]
    return _Operation(
        lambda x, *_: forms.rotary(a, x[0], *turns)[None],
        lambda dy: forms.rotary_gradient(a, dy[0], *turns)[None],
    )(x, cos, sin)


def flash_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    *,
    attn_mask: Tensor | None = None,
    actual_seq_qlen: Tensor | None = None,
    actual_seq_kvlen: Tensor | None = None,
    scalar_value: float = 1.0,
    next_tokens: int = 2**31 - 1,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
) -> Tensor:
    """`ops.flash_attention_score` of TND with causal segments, and of BSND without a mask."""
    a = _arithmetic(query, key, value)
    _require(query.dtype != ms.float32, "bfloat16 or float16")
    _require(query.shape == key.shape == value.shape, "as many keys as queries")
    *_, heads, size = query.shape
    _require(heads == head_num and size % 16 == 0 and size <= 512, "N = head_num; D a multiple of 16 to 512")
    if input_layout == "TND":
        _require(sparse_mode == 3 and next_tokens == 0, "sparse_mode 3, next_tokens 0")
        mask = attn_mask.asnumpy()
        _require(mask.dtype == np.uint8, "uint8 mask")
        np.testing.assert_array_equal(mask, np.triu(np.ones((2048, 2048)), 1))
        ends = _ends(actual_seq_qlen, query.shape[0])
        np.testing.assert_array_equal(ends, _ends(actual_seq_kvlen, query.shape[0]))
    else:
        _require(input_layout == "BSND", "TND or BSND")
        unused = attn_mask, actual_seq_qlen, actual_seq_kvlen
        _require(unused == (None, None, None) and sparse_mode == 0, "BSND: no mask, no ends")
        ends = np.cumsum([query.shape[1]] * query.shape[0])
    rest = ends, scalar_value, input_layout == "TND"
    kept: list[Any] = []

    def forward(*arrays: np.ndarray) -> np.ndarray:
        flat = [array.reshape(-1, heads, size) for array in arrays]
        kept[:] = [tuple(flat), forms.attention(a, tuple(flat), *rest)]
        return kept[1][0].reshape(query.shape)

    def backward(dout: np.ndarray) -> Arrays:
        found = forms.attention_gradient(a, dout.reshape(-1, heads, size), *kept, *rest)
        return tuple(gradient.reshape(query.shape) for gradient in found)

    return _Operation(forward, backward)(query, key, value)


def _ends(ends: Tensor, tokens: int) -> np.ndarray:
    """Ends that TND takes: int64, at most 1024, growing, none of a segment without tokens, the last T."""
    array = ends.asnumpy()
    _require(array.dtype == np.int64 and array.ndim == 1 and len(array) <= 1024, "int64 (B,), B up to 1024")
    _require((np.diff(array, prepend=0) > 0).all() and array[-1] == tokens, "growing ends, the last T")
    return array


def cross_entropy(
    input: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """`mint.nn.functional.cross_entropy`, the sum."""
    _require(reduction == "sum", "the sum")
    labels_N = target.asnumpy()
    _require(((labels_N >= 0) | (labels_N == ignore_index)).all(), "labels, or ignore_index")
    kept: list[np.ndarray] = []

    def forward(logits_NV: np.ndarray, _: np.ndarray) -> np.ndarray:
        loss, log_p_NV = forms.cross_entropy(EXACT, logits_NV, labels_N)
        kept[:] = [log_p_NV]
        return np.array(loss)

    return _Operation(
        forward, lambda dloss: forms.cross_entropy_gradient(EXACT, float(dloss), kept[0], labels_N)
    )(input, target)


def layer_norm(
    input: Tensor, normalized_shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> Tensor:
    """`mint.nn.functional.layer_norm` over the last axis."""
    _require(tuple(normalized_shape) == weight.shape == input.shape[-1:], "the last axis' weight")
    a = _arithmetic(input, weight, bias)
    x_PD, weight_D = _array(input), _array(weight)
    operation = _Operation(
        lambda x, weight, bias: forms.layer_norm(a, x, weight, bias, eps),
        lambda dy: forms.layer_norm_gradient(a, dy, x_PD, weight_D, eps),
    )
    return operation(input, weight, bias)


def matmul_transposed(x: Tensor, weight: Tensor) -> Tensor:
    """`ops.MatMul(transpose_b=True)`, of which a CPU has all but bfloat16."""
    a = _arithmetic(x, weight)
    if a is EXACT:
        return MATMUL(x, weight)
    x_PD, weight_FD = _array(x), _array(weight)
    return _Operation(
        lambda x, weight: forms.product(a, x, weight.T),
        lambda dy: (forms.product(a, dy, weight_FD), forms.product(a, dy.T, x_PD)),
    )(x, weight)


def assign(variable: Parameter, value: Tensor) -> Tensor:
    """`ops.assign`, of which a CPU has all but bfloat16."""
    if value.dtype == ms.bfloat16:
        variable.set_data(value)
        return variable
    return ASSIGN(variable, value)


class AddBias(nn.Cell):
    """x + b; in bfloat16 a CPU cannot add up the gradient of b."""

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        a = _arithmetic(x, bias)
        return _Operation(lambda x, bias: a.store(x + bias), lambda dy: (dy, a.store(dy.sum(0))))(x, bias)


def _require(met: bool, what: str) -> None:
    if not met:
        raise ValueError(f"CANN's documentation asks for {what}")


ASSIGN, MATMUL = ops.assign, layers.matmul_transposed
REPLACED = {
    ops: (assign, rms_norm, swiglu, rotary_position_embedding, flash_attention_score),
    mint.nn.functional: (gelu, layer_norm, cross_entropy),
}


def install(patch: pytest.MonkeyPatch) -> None:
    """Put them in the place of MindSpore's own, and the Ascend kernels in that of the CPU's."""
    for module, functions in REPLACED.items():
        for function in functions:
            patch.setattr(module, function.__name__, function)
    patch.setattr(layers, "matmul_transposed", matmul_transposed)
    patch.setattr(ascend, "AddBias", AddBias)
    patch.setitem(kernels.BODIES, "CPU", "ascend")
