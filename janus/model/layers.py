"""Layers that hold parameters; what they compute is the kernels' (`janus/model/kernels`).

Weights are float32; products run in the dtype of the activations they meet, norms in float32. Where all is
float32 the casts are nothing.

Shapes: P flat positions, D width, B rows, H heads, S slots, K head width, F outputs, V rows of a table,
E width of an embedding.
"""

from mindspore import Tensor, mint, nn, ops

from janus.model.kernels import body
from janus.model.weights import Weights

_matmul_transposed = ops.MatMul(transpose_b=True)


class Linear(nn.Cell):
    """y = x Wᵀ + b, W as (outputs, inputs)."""

    def __init__(self, weights: Weights, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", (outputs, inputs))
        self.bias = weights.take("bias", (outputs,), "zeros") if bias else None
        self.add_bias = body().AddBias()

    def construct(self, x_PD: Tensor) -> Tensor:
        """(P, F) of (P, D)."""
        y_PF = _matmul_transposed(x_PD, self.weight.astype(x_PD.dtype))
        return y_PF if self.bias is None else self.add_bias(y_PF, self.bias.astype(x_PD.dtype))


class Embedding(nn.Cell):
    """A table of rows. repeats: one id may be most of a micro-batch, such as the code of a white area."""

    def __init__(self, weights: Weights, rows: int, width: int, repeats: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", (rows, width))
        self.embed = body().Embed(repeats)

    def construct(self, ids_P: Tensor) -> Tensor:
        """(P, E) of ids (P,)."""
        return self.embed(self.weight, ids_P)


class LayerNorm(nn.Cell):
    """LayerNorm over the last axis of (P, D)."""

    def __init__(self, weights: Weights, width: int, eps: float) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", (width,), "ones")
        self.bias = weights.take("bias", (width,), "zeros")
        self.norm = body().LayerNorm(eps)

    def construct(self, x_PD: Tensor) -> Tensor:
        """(P, D) normalised, in the dtype it came in."""
        return self.norm(x_PD.astype("float32"), self.weight, self.bias).astype(x_PD.dtype)


class RMSNorm(nn.Cell):
    """Root-mean-square normalisation over the last axis of (P, D)."""

    def __init__(self, weights: Weights, width: int, eps: float) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", (width,), "ones")
        self.norm = body().RMSNorm(eps)

    def construct(self, x_PD: Tensor) -> Tensor:
        """(P, D) normalised, in the dtype it came in."""
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
