"""Layers that hold parameters; what they compute is the kernels' (`janus/model/kernels`).

All of a layer is of one dtype: its activations', which are of the dtype of `working_weights`. Tables stay
float32, so that the gradients of a row that is read often are added up in float32.

Shapes: P flat positions, D width, F outputs, V rows of a table, E width of an embedding.
"""

from collections.abc import Sequence
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

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
        y_PF = matmul_transposed(x_PD, self.weight)
        return y_PF if self.bias is None else self.add_bias(y_PF, self.bias)


class Linears(nn.Cell):
    """Products of one input, without bias: (P, F) each; (P, n·F) in one where the kernels have `JOINED`."""

    def __init__(
        self, weights: Weights, names: Sequence[str], inputs: int, outputs: int, split: bool = True
    ) -> None:
        """split: whether a joined product is parted again."""
        super().__init__(auto_prefix=False)
        self.joined, self.split, self.outputs = body().JOINED, split, outputs
        if self.joined:
            self.weight = weights.take_joined(names, (outputs, inputs))
        else:
            linears = [Linear(weights / name, inputs, outputs, bias=False) for name in names]
            self.linears = nn.CellList(linears, auto_prefix=False)

    def construct(self, x_PD: Tensor) -> tuple[Tensor, ...]:
        if self.joined:
            y = matmul_transposed(x_PD, self.weight)
            return ops.split(y, self.outputs, -1) if self.split else (y,)
        return tuple([linear(x_PD) for linear in self.linears])


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
    """A kernel of x, a weight and a bias."""

    def __init__(self, weights: Weights, shape: tuple[int, ...], kind: str, kernel: Any) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", shape, kind)
        self.bias = weights.take("bias", shape[:1], "zeros")
        self.kernel = kernel

    def construct(self, x_PD: Tensor) -> Tensor:
        return self.kernel(x_PD, self.weight, self.bias)


class LayerNorm(Affine):
    """LayerNorm over the last axis of (P, D)."""

    def __init__(self, weights: Weights, width: int, eps: float) -> None:
        super().__init__(weights, (width,), "ones", body().LayerNorm(eps))


class RMSNorm(nn.Cell):
    """Root-mean-square normalisation over the last axis of (P, D)."""

    def __init__(self, weights: Weights, width: int, eps: float) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weights.take("weight", (width,), "ones")
        self.norm = body().RMSNorm(eps)

    def construct(self, x_PD: Tensor) -> Tensor:
        return self.norm(x_PD, self.weight)


def working_weights(network: nn.Cell) -> list[Parameter]:
    """The weights that products and norms take, which may be of a shorter dtype than float32."""
    kinds = (Linear, Linears, RMSNorm, LayerNorm)
    layers = [cell for _, cell in network.cells_and_names() if isinstance(cell, kinds)]
    return [parameter for layer in layers for parameter in layer.get_parameters(expand=False)]


def lower(network: nn.Cell, dtype: str) -> None:
    """Round the `working_weights` to `dtype`, float32 or bfloat16."""
    if dtype != "float32":
        for parameter in working_weights(network):
            parameter.set_dtype(getattr(ms, dtype))
