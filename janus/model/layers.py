"""Layers that hold parameters; what they compute is the kernels' (`janus/model/kernels`).

Weights are float32; products run in the dtype of the activations they meet, norms in float32. Where all is
float32 the casts are nothing.

Shapes: P flat positions, D width, B rows, H heads, S slots, K head width, F outputs, V rows of a table,
E width of an embedding.
"""

from typing import Any

from mindspore import Tensor, mint, nn, ops

from janus.model.kernels import body
from janus.model.weights import Weights

matmul_transposed = ops.MatMul(transpose_b=True)


class Linear(nn.Cell):
    """y = x Wᵀ + b, (P, F) of (P, D); W as (outputs, inputs)."""

    def __init__(self, weights: Weights, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", (outputs, inputs))
        self.bias = weights.take("bias", (outputs,), "zeros") if bias else None
        self.add_bias = body().AddBias()

    def construct(self, x_PD: Tensor) -> Tensor:
        y_PF = matmul_transposed(x_PD, self.weight.astype(x_PD.dtype))
        return y_PF if self.bias is None else self.add_bias(y_PF, self.bias.astype(x_PD.dtype))


class Mlp(nn.Cell):
    """second(gelu(first(x))), (P, F) of (P, D)."""

    def __init__(self, first: Weights, second: Weights, inputs: int, inner: int, outputs: int) -> None:
        super().__init__(auto_prefix=False)
        self.first, self.second = Linear(first, inputs, inner), Linear(second, inner, outputs)
        self.gelu = body().Gelu()

    def construct(self, x_PD: Tensor) -> Tensor:
        return self.second(self.gelu(self.first(x_PD)))


class Embedding(nn.Cell):
    """A table of rows, (P, E) of ids (P,). repeats: as the kernel `Embed` has it."""

    def __init__(self, weights: Weights, rows: int, width: int, repeats: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", (rows, width))
        self.embed = body().Embed(repeats)

    def construct(self, ids_P: Tensor) -> Tensor:
        return self.embed(self.weight, ids_P)


class Affine(nn.Cell):
    """A kernel of x, a weight and a bias, in float32; the result in the dtype of x."""

    def __init__(self, weights: Weights, shape: tuple[int, ...], kind: str, kernel: Any) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", shape, kind)
        self.bias = weights.take("bias", shape[:1], "zeros")
        self.kernel = kernel

    def construct(self, x_PD: Tensor) -> Tensor:
        return self.kernel(x_PD.astype("float32"), self.weight, self.bias).astype(x_PD.dtype)


class LayerNorm(Affine):
    """LayerNorm over the last axis of (P, D)."""

    def __init__(self, weights: Weights, width: int, eps: float) -> None:
        super().__init__(weights, (width,), "ones", body().LayerNorm(eps))


class RMSNorm(nn.Cell):
    """Root-mean-square normalisation over the last axis of (P, D), in the dtype of x."""

    def __init__(self, weights: Weights, width: int, eps: float) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", (width,), "ones")
        self.norm = body().RMSNorm(eps)

    def construct(self, x_PD: Tensor) -> Tensor:
        return self.norm(x_PD.astype("float32"), self.weight).astype(x_PD.dtype)


def split_heads(x_PD: Tensor, rows: int, heads: int) -> Tensor:
    """(B·S, H·K) to (B, H, S, K).

    `mint.permute`: on CPU, what `transpose` reads and writes stays in memory until the graph ends.
    """
    return mint.permute(x_PD.reshape(rows, -1, heads, x_PD.shape[-1] // heads), (0, 2, 1, 3))


def join_heads(x_BHSK: Tensor) -> Tensor:
    """(B, H, S, K) to (B·S, H·K)."""
    rows, heads, length, head_size = x_BHSK.shape
    return mint.permute(x_BHSK, (0, 2, 1, 3)).reshape(rows * length, heads * head_size)
