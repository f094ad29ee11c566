"""How well a network predicts what it is shown: each supervised token's −log p, and whether it came first.

Shapes: N states that predict, V classes.
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from janus.model.loss import TaskLoss


class TokenScores(nn.Cell):
    """The scores of one task's batch, from the logits that its loss is made of."""

    def __init__(self, loss: TaskLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.softmax = ops.Softmax(-1)
        self.top = ops.ArgMaxWithValue(axis=1, keep_dims=True)

    def construct(self, labels_N: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(−log p(label), 1 where the label is the likeliest class), float32 (N,); junk where unused.

        inputs: those of `TaskLoss.logits`.
        """
        logits_NV = self.loss.logits(*inputs)
        labels_N1 = ops.maximum(labels_N, 0).reshape(-1, 1)
        class_N1, top_N1 = self.top(logits_NV)
        # As in the loss: p(top) is never tiny, so its logarithm is safe.
        probability_N1 = ops.gather_d(self.softmax(logits_NV), 1, class_N1)
        nll_N1 = top_N1 - ops.gather_d(logits_NV, 1, labels_N1) - ops.log(probability_N1)
        return nll_N1.reshape(-1), (class_N1 == labels_N1).astype("float32").reshape(-1)
