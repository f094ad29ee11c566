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
    """Σ −log p(label) over the labels of one task's batch (text, vqa or t2i) that are not negative.

    Its inputs after the labels are those of `logits`. dtype: what products are computed in.
    """

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
        return self.cross_entropy(self.logits(*inputs), labels_N)

    def logits(self, state_rows_N: Tensor, input_ids_P: Tensor, *arrays: Tensor) -> Tensor:
        """Logits (N, V), float32, of the states at `state_rows_N`.

        arrays: the four of `Llama.construct`; then, but for text, `image_index_P` and `pixels_IHWC` (vqa) or
        `image_tokens_IT` (t2i).
        """
        places, images = arrays[:4], arrays[4:]
        embeds_PD = self.language_model.embed_tokens(input_ids_P).astype(self.dtype)
        if self.task == "vqa":
            features_MD = self.aligner(self.vision_model(images[1], self.dtype))
            embeds_PD = place_images(embeds_PD, features_MD, images[0])
        if self.task == "t2i":
            embeds_PD = place_images(embeds_PD, self.embed_codes(images[1], self.dtype), images[0])
        hidden_PD = self.language_model(embeds_PD, *places)
        return self.head(ops.gather(hidden_PD, state_rows_N, 0)).astype("float32")


class TokenScores(nn.Cell):
    """(−log p(label), 1 where the label is the likeliest class), float32 (N,); junk where unused."""

    def __init__(self, loss: TaskLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss

    def construct(self, labels_N: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        nll_N, class_N = self.loss.cross_entropy.scores(self.loss.logits(*inputs), labels_N)
        return nll_N, (class_N == ops.maximum(labels_N, 0)).astype("float32")
