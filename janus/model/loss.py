"""What each task computes: summed cross-entropy over its supervised positions, or the scores of each.

Only supervised states reach a head: for a vqa batch that is about one position in a hundred, and the text
head is 102,400 wide. The Cell of a task holds only the parts that the task uses, so its parameters are
exactly those that get a gradient.

Shapes: P flat tokens, B rows of S attention slots, I images, T tokens of an image, M = I·T, D width, V
classes, N states that predict (static; unused ones carry a negative label).
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from janus.model.janus import Janus, place_images
from janus.model.kernels.cpu_gradients import column_sum, row_sum, spread

_softmax = ops.Softmax(-1)
_top = ops.ArgMaxWithValue(axis=1, keep_dims=True)


class TaskLoss(nn.Cell):
    """The summed loss of one task's batch: text, vqa or t2i. dtype: what products are computed in."""

    def __init__(self, model: Janus, task: str, dtype: str = "float32") -> None:
        super().__init__(auto_prefix=False)
        self.task, self.dtype = task, dtype
        self.language_model = model.language_model
        self.cross_entropy = SummedCrossEntropy()
        if task == "vqa":
            self.vision_model, self.aligner = model.vision_model, model.aligner
        if task == "t2i":
            self.embed_codes = model.embed_codes
        self.head = model.generation_head if task == "t2i" else model.lm_head

    def construct(self, labels_N: Tensor, *inputs: Tensor) -> Tensor:
        """Sum of −log p(label) over the labels that are not negative. inputs: those of `logits`."""
        return self.cross_entropy(self.logits(*inputs), labels_N)[0]

    def logits(
        self,
        state_rows_N: Tensor,
        input_ids_P: Tensor,
        position_ids_P: Tensor,
        token_of_BS: Tensor,
        slot_of_P: Tensor,
        segment_ids_BS: Tensor,
        *images: Tensor,
    ) -> Tensor:
        """Logits (N, V), float32, of the states at `state_rows_N`; `Llama.construct` has the other arrays.

        images: nothing for text; else `image_index_P` and `pixels_IHWC` (vqa) or `image_tokens_IT` (t2i).
        """
        embeds_PD = self.language_model.embed_tokens(input_ids_P).astype(self.dtype)
        if self.task == "vqa":
            embeds_PD = place_images(
                embeds_PD, self.aligner(self.vision_model(images[1], self.dtype)), images[0]
            )
        if self.task == "t2i":
            embeds_PD = place_images(embeds_PD, self.embed_codes(images[1], self.dtype), images[0])
        hidden_PD = self.language_model(embeds_PD, position_ids_P, token_of_BS, slot_of_P, segment_ids_BS)
        return self.head(ops.gather(hidden_PD, state_rows_N, 0)).astype("float32")


class TokenScores(nn.Cell):
    """How well one task's batch is predicted: −log p of each target, and whether it came first."""

    def __init__(self, loss: TaskLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss

    def construct(self, labels_N: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(−log p(label), 1 where the label is the likeliest class), float32 (N,); junk where unused.

        inputs: those of `TaskLoss.logits`.
        """
        nll_N1, class_N1, _, _ = negative_log_p(self.loss.logits(*inputs), labels_N)
        hit_N = class_N1.reshape(-1) == ops.maximum(labels_N, 0)
        return nll_N1.reshape(-1), hit_N.astype("float32")


class SummedCrossEntropy(nn.Cell):
    """Σ −log p(label) over the rows whose label is not negative, with what its gradient takes from it."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.subtract_at = ops.TensorScatterSub()

    def construct(self, logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, ...]:
        """(sum, the kernel's softmax, its row sums, where each row's label is)."""
        nll_N1, _, softmax_NV, total_N1 = negative_log_p(logits_NV, labels_N)
        used_N1 = (labels_N >= 0).astype("float32").reshape(-1, 1)
        # Not in the backward: it would not build with the functions that make it.
        row_N = ops.arange(labels_N.shape[0]).astype(labels_N.dtype)
        label_N2 = ops.stack((row_N, ops.maximum(labels_N, 0)), 1)
        return column_sum(nll_N1 * used_N1).reshape(()), softmax_NV, total_N1, label_N2

    def bprop(self, logits_NV: Tensor, labels_N: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """(p − onehot) on the used rows; labels have none."""
        _, softmax_NV, total_N1, label_N2 = out
        scale_N1 = (labels_N >= 0).astype("float32").reshape(-1, 1) * dout[0]
        ones_1V = ops.ones((1, logits_NV.shape[1]), logits_NV.dtype)
        scaled_NV = softmax_NV * spread(scale_N1 / total_N1, ones_1V)
        return self.subtract_at(scaled_NV, label_N2, scale_N1.reshape(-1)), ops.zeros_like(labels_N)


def negative_log_p(logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """−log p(label), class of the top logit, the kernel's softmax (N, V), its row sums; the rest (N, 1).

    −log p(label) = top − logit(label) − log p(top): p(top) is never tiny, so nothing overflows and its
    logarithm is safe. The kernel may divide by a sum in one chain: p is its softmax over that one's row sum.
    Where a label is negative, the score is that of class 0.
    """
    class_N1, top_N1 = _top(logits_NV)
    softmax_NV = _softmax(logits_NV)
    total_N1 = row_sum(softmax_NV)
    p_top_N1 = ops.gather_d(softmax_NV, 1, class_N1) / total_N1
    logit_N1 = ops.gather_d(logits_NV, 1, ops.maximum(labels_N, 0).reshape(-1, 1))
    return top_N1 - logit_N1 - ops.log(p_top_N1), class_N1, softmax_NV, total_N1
