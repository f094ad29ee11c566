"""The kernels of `plain.py` as an Ascend NPU has them: fused, in the dtype of what they take. Untested there.

What each fused operation computes, and where it rounds, is written out in NumPy and held against `plain.py`
by tests/ascend; that MindSpore's Ascend compiler accepts every graph is shown by `make ascend-audit`
(docs/ascend.md). Operations that MindSpore means to change after 2.9 are called once each, below.

Flash attention takes bfloat16 alone; in float32, which only a check of numbers asks for, attention is the
plain form. A Cell that is not here is the plain one.

Shapes: P flat tokens, D width, H heads, K head width, F inner width, I images of T patches, M = I·T, N states
that predict, V classes.
"""

from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops

from janus.model.kernels import plain
from janus.model.kernels.plain import Tensors
from janus.tokens import IGNORE

JOINED = True
CAUSAL = 2048
"""Side of the one mask that flash attention takes for causal attention of any length."""

AddBias = plain.AddBias
Attention = plain.Attention
Conv3x3 = plain.Conv3x3
Embed = plain.Embed
GroupNorm = plain.GroupNorm
SumOfSquares = plain.SumOfSquares


class Empty(nn.Cell):
    """Each buffer with a zero of its own; else all of one shape are copied from the same zeros in memory."""

    def construct(self, buffer: Parameter, zero: Tensor) -> Tensor:
        return ops.assign(buffer, ops.broadcast_to(ops.depend(zero, buffer), buffer.shape))


class TakeRows(nn.Cell):
    """The gradients of rows are added up in float32: in bfloat16 that has no kernel."""

    def construct(self, x_PD: Tensor, rows_N: Tensor) -> Tensor:
        return ops.gather(x_PD.astype(ms.float32), rows_N, 0).astype(x_PD.dtype)


class LayerNorm(plain.LayerNorm):
    """One kernel, float32 inside; what its backward reads of mean and deviation is float32 too."""

    def construct(self, x_PD: Tensor, weight_D: Tensor, bias_D: Tensor) -> Tensor:
        return mint.nn.functional.layer_norm(x_PD, x_PD.shape[-1:], weight_D, bias_D, self.eps)


class RMSNorm(plain.RMSNorm):
    """One kernel, float32 inside."""

    def construct(self, x_PD: Tensor, weight_D: Tensor) -> Tensor:
        return ops.rms_norm(x_PD, weight_D, self.eps)[0]


class SwiGLU(nn.Cell):
    """One kernel over gate and up side by side, (P, 2F), as `Linears` joins them."""

    def construct(self, gate_up: Tensor) -> Tensor:
        return ops.swiglu(gate_up, -1)


class Gelu(nn.Cell):
    """One kernel, float32 inside: written out in bfloat16, 1 + erf(x) loses half its digits below −2."""

    def construct(self, x: Tensor) -> Tensor:
        return mint.nn.functional.gelu(x, approximate="none")


class Rotary(plain.Rotary):
    """One kernel over (1, P, H, K)."""

    def angles(self, position_ids_P: Tensor, scale: float) -> Tensors:
        """cos and sin as the plain form has them, (1, P, 1, K)."""
        cos_P1K, sin_P1K = super().angles(position_ids_P, scale)
        return cos_P1K.expand_dims(0), sin_P1K.expand_dims(0)

    def construct(self, x_PD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x_PD.reshape((1, *self.shape))
        return ops.rotary_position_embedding(x, cos, sin, 0).reshape(x_PD.shape)


class PictureAttention(plain.PictureAttention):
    """Flash attention over (I, T, H, K)."""

    def construct(self, q_MD: Tensor, k_MD: Tensor, v_MD: Tensor, images: int) -> Tensor:
        if q_MD.dtype == ms.float32:
            return super().construct(q_MD, k_MD, v_MD, images)
        shape = (images, -1, self.heads, q_MD.shape[-1] // self.heads)
        q, k, v = q_MD.reshape(shape), k_MD.reshape(shape), v_MD.reshape(shape)
        out = ops.flash_attention_score(q, k, v, self.heads, scalar_value=self.scale, input_layout="BSND")
        return out.reshape(q_MD.shape)


class SegmentAttention(plain.SegmentAttention):
    """Flash attention on the flat axis itself: of each token it gets only where its segment ends."""

    def __init__(self, heads: int, head_size: int) -> None:
        super().__init__(heads, head_size)
        self.shape, self.causal = (-1, heads, head_size), _causal_mask()

    def places(self, tokens: int, segment_ends_N: Tensor) -> Tensors:
        """The mask, which bfloat16 does not read and a graph leaves out, and the ends."""
        return (*super().places(tokens, segment_ends_N), segment_ends_N)

    def construct(self, q_PD: Tensor, k_PD: Tensor, v_PD: Tensor, places: Tensors) -> Tensor:
        if q_PD.dtype == ms.float32:
            return super().construct(q_PD, k_PD, v_PD, places)
        q, k, v = q_PD.reshape(self.shape), k_PD.reshape(self.shape), v_PD.reshape(self.shape)
        out = ops.flash_attention_score(
            q,
            k,
            v,
            self.heads,
            attn_mask=self.causal,
            actual_seq_qlen=places[1],
            actual_seq_kvlen=places[1],
            next_tokens=0,
            input_layout="TND",
            sparse_mode=3,
        )
        return out.reshape(q_PD.shape)


@cache
def _causal_mask() -> Tensor:
    """1 where a token must not look, for all layers the same 4 MB."""
    return Tensor(np.triu(np.ones((CAUSAL, CAUSAL), np.uint8), 1))


class CrossEntropy(plain.CrossEntropy):
    """MindSpore's log-softmax and negative log-likelihood, each with a backward of its own."""

    def construct(self, logits_NV: Tensor, labels_N: Tensor) -> Tensor:
        return mint.nn.functional.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="sum")
