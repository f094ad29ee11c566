"""What each task computes: summed cross-entropy over its supervised positions, or the scores of each.

Only supervised states reach a head: for a vqa batch that is about one position in a hundred, and the text
head is 102,400 wide. The Cell of a task holds only the parts that the task uses, so its parameters are
exactly those that get a gradient.

Shapes: P flat tokens, B rows of S attention slots, I images, T tokens of an image, M = I·T, D width, V
classes, N states that predict (static; unused ones carry a negative label).
"""

from mindspore import Tensor, nn, ops

from janus.model.janus import Janus, place_images
from janus.model.kernels import body


class TaskLoss(nn.Cell):
    """The summed loss of one task's batch: text, vqa or t2i. dtype: what products are computed in."""

    def __init__(self, model: Janus, task: str, dtype: str = "float32") -> None:
        super().__init__(auto_prefix=False)
        self.task, self.dtype = task, dtype
        self.language_model = model.language_model
        self.cross_entropy = body().CrossEntropy()
        if task == "vqa":
            self.vision_model, self.aligner = model.vision_model, model.aligner
        if task == "t2i":
            self.embed_codes = model.embed_codes
        self.head = model.generation_head if task == "t2i" else model.lm_head

    def construct(self, labels_N: Tensor, *inputs: Tensor) -> Tensor:
        """Sum of −log p(label) over the labels that are not negative. inputs: those of `logits`."""
        return self.cross_entropy(self.logits(*inputs), labels_N)

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
        nll_N, class_N = self.loss.cross_entropy.scores(self.loss.logits(*inputs), labels_N)
        return nll_N, (class_N == ops.maximum(labels_N, 0)).astype("float32")
