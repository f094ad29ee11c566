"""What each task computes: summed cross-entropy over its supervised positions.

Only supervised states reach a head: for a vqa batch that is about one position in a hundred, and the text
head is 102,400 wide. The Cell of a task holds only the parts that the task uses, so its parameters are
exactly those that get a gradient.

Shapes: P flat tokens, B rows of S attention slots, I images, T tokens of an image, M = I·T, D width, V
classes, N states that predict (static; unused ones carry a negative label).
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from janus.model.janus import Janus, place_images
from janus.model.kernels.cpu_gradients import column_sum, spread


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


class SummedCrossEntropy(nn.Cell):
    """Σ −log p(label) over the rows whose label is not negative. Gives (sum, probability of the top class).

    −log p(label) = top − logit(label) − log p(top): p(top) is never tiny, so nothing overflows and the rows
    are read three times, not seven.
    """

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)
        self.softmax = ops.Softmax(-1)
        self.top = ops.ArgMaxWithValue(axis=1, keep_dims=True)
        self.gradient = ops.SparseSoftmaxCrossEntropyWithLogits(is_grad=True)

    def construct(self, logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """(sum, probability of the top class)."""
        class_N1, top_N1 = self.top(logits_NV)
        probability_N1 = ops.gather_d(self.softmax(logits_NV), 1, class_N1)
        logit_N1 = ops.gather_d(logits_NV, 1, ops.maximum(labels_N, 0).reshape(-1, 1))
        used_N1 = (labels_N >= 0).astype("float32").reshape(-1, 1)
        nll_N1 = (top_N1 - logit_N1 - ops.log(probability_N1)) * used_N1
        return column_sum(nll_N1).reshape(()), probability_N1

    def bprop(self, logits_NV: Tensor, labels_N: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """(p − onehot) on the used rows; labels have none."""
        rows, classes = logits_NV.shape
        # The kernel gives the gradient of the mean over all rows.
        used_N1 = (labels_N >= 0).astype("float32").reshape(-1, 1) * (dout[0] * float(rows))
        gradient_NV = self.gradient(logits_NV, ops.maximum(labels_N, 0))
        spread_NV = spread(used_N1, ops.ones((1, classes), logits_NV.dtype))
        return gradient_NV * spread_NV, ops.zeros_like(labels_N)
