"""What the network computes, in its shortest form: broadcasting, MindSpore's own reductions and gradients.

The docstring of a Cell says what a call gives, and in which shape.

Shapes: P flat tokens or pixels, D width, B rows, H heads, S slots, K head width, F inner width, I images of
H×W pixels, C channels, N states that predict, V classes, E width of an embedding.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops

Tensors = tuple[Tensor, ...]
JOINED = False
"""Whether products of one input are one product, with their weights below each other."""
ROOT_HALF = 2**-0.5  # a graph would compute it in float32
MASKED = -1e9
"""Added to a score that must not count: exp of it is exactly 0."""


likeliest = ops.Argmax(axis=-1, output_type=ms.int32)
"""Of each row the place of its greatest value, (N,), int32: an NPU is slow at int64."""


class AddBias(nn.Cell):
    """x + b, (P, F)."""

    def construct(self, x_PF: Tensor, bias_F: Tensor) -> Tensor:
        return x_PF + bias_F


class Embed(nn.Cell):
    """Rows of a table, (P, E). repeats: one id may be most of a micro-batch, as the code of a white area."""

    def __init__(self, repeats: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.repeats = repeats

    def construct(self, table_VE: Tensor, ids_P: Tensor) -> Tensor:
        return ops.gather(table_VE, ids_P, 0)


class TakeRows(nn.Cell):
    """Rows of x, (N, D); each is taken at most once, but for those that nothing is read from."""

    def construct(self, x_PD: Tensor, rows_N: Tensor) -> Tensor:
        return ops.gather(x_PD, rows_N, 0)


class LayerNorm(nn.Cell):
    """(x − mean) / √(variance + ε) · w + b over the last axis, (P, D)."""

    def __init__(self, eps: float) -> None:
        super().__init__(auto_prefix=False)
        self.eps = eps

    def construct(self, x_PD: Tensor, weight_D: Tensor, bias_D: Tensor) -> Tensor:
        centred_PD = x_PD - x_PD.mean(-1, keep_dims=True)
        variance_P1 = ops.square(centred_PD).mean(-1, keep_dims=True)
        return centred_PD * ops.rsqrt(variance_P1 + self.eps) * weight_D + bias_D


class RMSNorm(nn.Cell):
    """x / √(mean(x²) + ε) · w over the last axis (arXiv:1910.07467), (P, D)."""

    def __init__(self, eps: float) -> None:
        super().__init__(auto_prefix=False)
        self.eps = eps

    def construct(self, x_PD: Tensor, weight_D: Tensor) -> Tensor:
        return x_PD * ops.rsqrt(ops.square(x_PD).mean(-1, keep_dims=True) + self.eps) * weight_D


class SwiGLU(nn.Cell):
    """silu(gate) · up (arXiv:2002.05202), (P, F)."""

    def construct(self, gate_PF: Tensor, up_PF: Tensor) -> Tensor:
        return gate_PF * ops.sigmoid(gate_PF) * up_PF


class Gelu(nn.Cell):
    """x · Φ(x), with the error function, as SigLIP, aligners and image head have it (not the tanh form)."""

    def construct(self, x: Tensor) -> Tensor:
        return x * (ops.erf(x * ROOT_HALF) + 1.0) * 0.5


class Rotary(nn.Cell):
    """Each head turned by its token's angles, halves layout (RoPE, arXiv:2104.09864), (P, D)."""

    def __init__(self, heads: int, head_size: int, theta: float) -> None:
        super().__init__(auto_prefix=False)
        self.shape = (-1, heads, head_size)
        half = head_size // 2
        frequencies = theta ** -(np.arange(half, dtype=np.float64) / half)
        self.frequencies_1K = Tensor(np.tile(frequencies, 2)[None].astype(np.float32))

    def angles(self, position_ids_P: Tensor, scale: float) -> Tensors:
        """cos and sin of every token's angles, each times `scale`, as `construct` takes them."""
        angles_P1K = (position_ids_P.reshape(-1, 1).astype("float32") * self.frequencies_1K).expand_dims(1)
        return ops.cos(angles_P1K) * scale, ops.sin(angles_P1K) * scale

    def construct(self, x_PD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x_PHK = x_PD.reshape(self.shape)
        first, second = ops.chunk(x_PHK, 2, -1)
        return (x_PHK * cos + ops.concat((-second, first), -1) * sin).reshape(x_PD.shape)


class Attention(nn.Cell):
    """softmax(q kᵀ + mask) v for scaled q, (B, H, S, K). mask: (B, H, S, S), read only if `masked`."""

    def __init__(self, head_size: int, masked: bool) -> None:
        super().__init__(auto_prefix=False)
        self.masked = masked

    def construct(self, q_BHSK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Tensor) -> Tensor:
        scores_BHSS = ops.matmul(q_BHSK, k_BHSK.swapaxes(-1, -2)).astype("float32")
        if self.masked:
            scores_BHSS = scores_BHSS + mask
        return ops.matmul(ops.softmax(scores_BHSS, -1).astype(v_BHSK.dtype), v_BHSK)


class PictureAttention(nn.Cell):
    """What each patch takes from all patches of its picture, (M, D)."""

    def __init__(self, heads: int, head_size: int) -> None:
        super().__init__(auto_prefix=False)
        self.heads, self.scale = heads, head_size**-0.5
        self.attention = Attention(head_size, masked=False)
        self.no_mask = Tensor(0.0)

    def construct(self, q_MD: Tensor, k_MD: Tensor, v_MD: Tensor, images: int) -> Tensor:
        q, k, v = [split_heads(x_MD, images, self.heads) for x_MD in (q_MD * self.scale, k_MD, v_MD)]
        return join_heads(self.attention(q, k, v, self.no_mask))


class SegmentAttention(nn.Cell):
    """Causal attention on a flat axis of tokens, (P, D): a token sees its own segment up to itself."""

    def __init__(self, heads: int, head_size: int) -> None:
        super().__init__(auto_prefix=False)
        self.heads = heads
        self.attention = Attention(head_size, masked=True)

    def places(self, tokens: int, segment_ends_N: Tensor) -> Tensors:
        """The mask (P, P), shared by all layers. segment_ends: where each ends, the last at P = `tokens`."""
        order_P = ops.arange(0, tokens, 1, dtype=ms.int32)
        ended_PN = order_P.reshape(-1, 1) >= segment_ends_N.astype("int32").reshape(1, -1)
        segment_P = ended_PN.astype("int32").sum(1, dtype=ms.int32)
        same_PP = segment_P.reshape(-1, 1) == segment_P.reshape(1, -1)
        seen_PP = ops.logical_and(same_PP, order_P.reshape(-1, 1) >= order_P.reshape(1, -1))
        return ((1.0 - seen_PP.astype("float32")) * MASKED,)

    def construct(self, q_PD: Tensor, k_PD: Tensor, v_PD: Tensor, places: Tensors) -> Tensor:
        q, k, v = [split_heads(x_PD, 1, self.heads) for x_PD in (q_PD, k_PD, v_PD)]
        return join_heads(self.attention(q, k, v, places[0]))


class CrossEntropy(nn.Cell):
    """Σ −log p(label) over the rows whose label is not negative, a scalar."""

    def construct(self, logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        return (self.scores(logits_NV, labels_N)[0] * (labels_N >= 0).astype("float32")).sum()

    def scores(self, logits_NV: Tensor, labels_N: Tensor) -> Tensors:
        """(−log p(label), likeliest class), (N,) each. A negative label has the score of class 0."""
        log_p_NV = ops.log_softmax(logits_NV, -1)
        label_N1 = ops.maximum(labels_N, 0).reshape(-1, 1)
        return -ops.gather_d(log_p_NV, 1, label_N1).reshape(-1), likeliest(logits_NV)


class SumOfSquares(nn.Cell):
    """Σ x² over all elements, a scalar."""

    def construct(self, x: Tensor) -> Tensor:
        return ops.square(x).sum()


class Empty(nn.Cell):
    """Fill a buffer, whatever it holds, with `zero`, which is an argument of the graph.

    Zeros written in the graph would be a constant of it for each buffer.
    """

    def construct(self, buffer: Parameter, zero: Tensor) -> Tensor:
        return ops.assign(buffer, ops.broadcast_to(zero, buffer.shape))


class GroupNorm(nn.Cell):
    """(x − mean) / √(variance + ε) · w + b over a picture's pixels and a group's channels, (P, C)."""

    def __init__(self, images: int, side: int, channels: int, groups: int, eps: float) -> None:
        super().__init__(auto_prefix=False)
        self.shape, self.eps = (images, side * side, groups, channels // groups), eps

    def construct(self, x_PC: Tensor, weight_C: Tensor, bias_C: Tensor) -> Tensor:
        x = x_PC.reshape(self.shape)
        centred = x - x.mean((1, 3), keep_dims=True)
        variance = ops.square(centred).mean((1, 3), keep_dims=True)
        return (centred * ops.rsqrt(variance + self.eps)).reshape(x_PC.shape) * weight_C + bias_C


class Conv3x3(nn.Cell):
    """A 3×3 convolution with zeros around the picture: (P′, C′) of (P, C), weight (C′, C, 3, 3).

    Stride 2 pads below and to the right only, as the reference; `doubled` repeats each pixel both ways.
    """

    def __init__(self, images: int, side: int, stride: int = 1, doubled: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.images, self.side, self.stride, self.doubled = images, side, stride, doubled
        self.padding = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

    def construct(self, x_PC: Tensor, weight_OC33: Tensor, bias_O: Tensor) -> Tensor:
        x_ICHW = x_PC.reshape(self.images, self.side, self.side, -1).transpose(0, 3, 1, 2)
        if self.doubled:
            x_ICHW = ops.repeat_elements(ops.repeat_elements(x_ICHW, 2, 2), 2, 3)
        y_IOHW = ops.conv2d(ops.pad(x_ICHW, self.padding), weight_OC33, bias_O, self.stride)
        return mint.permute(y_IOHW, (0, 2, 3, 1)).reshape(-1, bias_O.shape[0])


def split_heads(x_PD: Tensor, rows: int, heads: int) -> Tensor:
    """(B·S, H·K) to (B, H, S, K).

    `mint.permute`: on CPU, what `transpose` reads and writes stays in memory until the graph ends.
    """
    return mint.permute(x_PD.reshape(rows, -1, heads, x_PD.shape[-1] // heads), (0, 2, 1, 3))


def join_heads(x_BHSK: Tensor) -> Tensor:
    """(B, H, S, K) to (B·S, H·K)."""
    rows, heads, length, head_size = x_BHSK.shape
    return mint.permute(x_BHSK, (0, 2, 1, 3)).reshape(rows * length, heads * head_size)
