"""The kernels of `plain.py` in the forms that are fast on a CPU, with the same numbers but for rounding.

Written-out backwards are in `cpu_gradients.py`. Three rules keep the CPU fast and exact (docs/LOG.md):

- Sums over the last axis are matrix products: ReduceSum is several times slower.
- No sum of more than CHAIN terms is one product with a row of ones: some kernels add them in one chain.
- No element-wise operation broadcasts: its kernel keeps 16 bytes of indices for every element as long as
  the graph lives, and is four times slower. What must be spread is spread by a matrix product of width 1,
  or once a step for all layers.

Norms, softmax and the loss run in float32.

Shapes: P flat tokens or pixels, D width, B rows, H heads, S slots, K head width, F inner width, I images,
C channels, N states that predict, V classes, E width of an embedding.
"""

from functools import cache

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from janus.model.kernels import cpu_gradients as gradients
from janus.model.kernels import plain
from janus.model.kernels.cpu_gradients import CHAIN
from janus.model.kernels.plain import MASKED, Tensors


def _result(kind: type[nn.Cell]) -> type[nn.Cell]:
    """A Cell of `cpu_gradients` without what it keeps for its backward, which is behind its result."""

    class Result(nn.Cell):
        def __init__(self, *settings: object, **named: object) -> None:
            super().__init__(auto_prefix=False)
            self.whole = kind(*settings, **named)

        def construct(self, *inputs: Tensor) -> Tensor:
            return self.whole(*inputs)[0]

    return Result


JOINED = False

AddBias = gradients.AddBias
Attention = _result(gradients.Attention)
Gelu = _result(gradients.Gelu)
RMSNorm = _result(gradients.RMSNorm)
Rotary = gradients.Rotary
SwiGLU = _result(gradients.SwiGLU)
TakeRows = plain.TakeRows


class CrossEntropy(_result(gradients.CrossEntropy)):  # type: ignore[misc]
    """The sum of the cross-entropy; the scores for validation."""

    def scores(self, logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """(−log p(label), likeliest class), (N,) each."""
        nll_N1, class_N1, _, _ = gradients.negative_log_p(logits_NV, labels_N)
        return nll_N1.reshape(-1), class_N1.reshape(-1)


class Embed(plain.Embed):
    """Repeats are added up in blocks, each with a gradient of the whole table: for small tables."""

    def construct(self, table_VE: Tensor, ids_P: Tensor) -> Tensor:
        if not self.repeats or ids_P.shape[0] <= CHAIN:
            return ops.gather(table_VE, ids_P, 0)
        return ops.concat([ops.gather(table_VE, block, 0) for block in ops.split(ids_P, CHAIN)], 0)


class Empty(nn.Cell):
    """For finite values: subtracted from themselves, which is faster than a broadcast."""

    def construct(self, buffer: Parameter, zero: Tensor) -> Tensor:
        return ops.assign_sub(buffer, buffer)


class LayerNorm(nn.Cell):
    """MindSpore's, in blocks of rows: its kernel adds the gradients of weight and bias in one chain."""

    def __init__(self, eps: float) -> None:
        super().__init__(auto_prefix=False)
        self.norm = ops.LayerNorm(begin_norm_axis=1, begin_params_axis=1, epsilon=eps)

    def construct(self, x_PD: Tensor, weight_D: Tensor, bias_D: Tensor) -> Tensor:
        if x_PD.shape[0] <= CHAIN:
            return self.norm(x_PD, weight_D, bias_D)[0]
        blocks = [self.norm(block_PD, weight_D, bias_D)[0] for block_PD in ops.split(x_PD, CHAIN)]
        return ops.concat(blocks, 0)


class PictureAttention(plain.PictureAttention):
    """With the CPU's own attention."""

    def __init__(self, heads: int, head_size: int) -> None:
        super().__init__(heads, head_size)
        self.attention = Attention(head_size, masked=False)


class SegmentAttention(nn.Cell):
    """Tokens are moved to rows of slots for the scores alone, so that no product is spent on padding."""

    def __init__(self, heads: int, head_size: int) -> None:
        super().__init__(auto_prefix=False)
        self.heads, self.shape = heads, (-1, heads, head_size)
        self.attention = Attention(head_size, masked=True)
        self.move = gradients.Move()

    def places(self, tokens: int, token_of_BS: Tensor, slot_of_P: Tensor, segment_ids_BS: Tensor) -> Tensors:
        """(mask_BHSS, grid_BHS, flat_PH), shared by all layers; a `Batch` explains the arguments.

        mask: added to the scores. grid: for each head of a slot, its row among the (P·H) flat heads.
        flat: for each head of a token, its row among the (B·H·S) of the grid.
        """
        rows, length = token_of_BS.shape
        same = segment_ids_BS.reshape(rows, 1, length, 1) == segment_ids_BS.reshape(rows, 1, 1, length)
        order = ops.arange(length)
        seen = ops.logical_and(same, order.reshape(1, 1, length, 1) >= order.reshape(1, 1, 1, length))
        mask_BHSS = ops.tile((1.0 - seen.astype("float32")) * MASKED, (1, self.heads, 1, 1))
        heads_H = ops.arange(self.heads)
        grid_BHS = token_of_BS.reshape(rows, 1, length) * self.heads + heads_H.reshape(1, -1, 1)
        row_P1, slot_P1 = (slot_of_P // length).reshape(-1, 1), (slot_of_P % length).reshape(-1, 1)
        return mask_BHSS, grid_BHS, (row_P1 * self.heads + heads_H) * length + slot_P1

    def construct(self, q_PD: Tensor, k_PD: Tensor, v_PD: Tensor, places: Tensors) -> Tensor:
        mask_BHSS, grid_BHS, flat_PH = places
        q, k, v = [self.move(x_PD.reshape(self.shape), grid_BHS, flat_PH) for x_PD in (q_PD, k_PD, v_PD)]
        out_BHSK = self.attention(q, k, v, mask_BHSS)
        return self.move(out_BHSK, flat_PH, grid_BHS).reshape(q_PD.shape)


class SumOfSquares(nn.Cell):
    """Products with ones; ReduceSum is far slower."""

    def construct(self, x: Tensor) -> Tensor:
        return gradients.row_sum(ops.square(x).reshape(1, -1)).reshape(())


class GroupNorm(nn.Cell):
    """Sums are matrix products: along the lines of a picture, across them, then over a group's channels."""

    def __init__(self, images: int, side: int, channels: int, groups: int, eps: float) -> None:
        super().__init__(auto_prefix=False)
        group, self.eps = channels // groups, eps
        self.share_CC = Tensor(np.kron(np.eye(groups), np.full((group, group), 1 / group)).astype(np.float32))
        self.mean_L1W = Tensor(np.full((images * side, 1, side), 1 / side, np.float32))
        self.mean_I1H = Tensor(np.full((images, 1, side), 1 / side, np.float32))
        self.ones_IP1 = Tensor(np.ones((images, side * side, 1), np.float32))
        self.shape = (images, side * side, channels)

    def construct(self, x_PC: Tensor, weight_C: Tensor, bias_C: Tensor) -> Tensor:
        x_IPC = x_PC.reshape(self.shape)
        centred_IPC = x_IPC - self._spread(self._group_mean(x_IPC))
        variance_IC = self._group_mean(ops.square(centred_IPC))
        scale_IC = ops.rsqrt(variance_IC + self.eps) * weight_C
        return ops.bias_add((centred_IPC * self._spread(scale_IC)).reshape(x_PC.shape), bias_C)

    def _group_mean(self, x_IPC: Tensor) -> Tensor:
        """The mean of each channel's group, (I, C)."""
        images, _, channels = self.shape
        lines, _, side = self.mean_L1W.shape
        means_IHC = ops.bmm(self.mean_L1W, x_IPC.reshape(lines, side, channels)).reshape(images, side, -1)
        return ops.matmul(ops.bmm(self.mean_I1H, means_IHC).reshape(images, channels), self.share_CC)

    def _spread(self, row_IC: Tensor) -> Tensor:
        return ops.bmm(self.ones_IP1, row_IC.reshape(row_IC.shape[0], 1, -1))


class Conv3x3(nn.Cell):
    """The rows under the nine taps side by side, times the kernel.

    The CPU's own Conv2D takes oneDNN's reference path in MindSpore, 60 times slower (docs/LOG.md). Stride,
    zero padding and doubling are only a choice of which rows are gathered.
    """

    def __init__(self, images: int, side: int, stride: int = 1, doubled: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.rows_P9 = _tap_rows(images, side, stride, doubled)

    def construct(self, x_PC: Tensor, weight_OC33: Tensor, bias_O: Tensor) -> Tensor:
        kernel = weight_OC33.transpose(2, 3, 1, 0).reshape(9 * x_PC.shape[1], -1)
        x_PC = ops.concat((x_PC, ops.zeros((1, x_PC.shape[1]), x_PC.dtype)), 0)
        under_taps = ops.gather(x_PC, self.rows_P9, 0).reshape(self.rows_P9.shape[0], -1)
        return ops.bias_add(ops.matmul(under_taps, kernel), bias_O)


@cache
def _tap_rows(images: int, side: int, stride: int, doubled: bool) -> Tensor:
    """For each output row, the input rows under the nine taps of a 3×3 kernel, int32 (P′, 9).

    A tap outside the picture reads the row behind the last, which holds zeros.
    """
    scale, before = (2 if doubled else 1), (1 if stride == 1 else 0)
    at = np.arange(side * scale // stride)[:, None] * stride - before + np.arange(3)  # (target, tap)
    inside = (at >= 0) & (at < side * scale)
    y, x = at[:, None, :, None] // scale, at[None, :, None, :] // scale
    first = np.arange(images).reshape(-1, 1, 1, 1, 1) * side * side
    inside_HWYX = inside[:, None, :, None] & inside[None, :, None, :]
    rows = np.where(inside_HWYX, first + y * side + x, images * side * side)
    return Tensor(rows.reshape(-1, 9).astype(np.int32))
