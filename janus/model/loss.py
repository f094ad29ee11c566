"""What each task computes: summed cross-entropy over its supervised positions, or the scores of each.

Only supervised states reach a head: for a vqa batch that is about one position in a hundred, and the text
head is 102,400 wide. The Cell of a task holds only the parts that the task uses, so its parameters are
exactly those that get a gradient.

Shapes: P flat tokens, B rows of S attention slots, I images, T tokens of an image, M = I·T, D width, V
classes, N states that predict (static; unused ones carry a negative label).
"""

from mindspore import Tensor, nn, ops

from janus.model.janus import Janus, PlaceImages
from janus.model.kernels import body, takes_slots
from janus.prompts import Signature


class TaskLoss(nn.Cell):
    """The summed loss of micro-batches of one signature."""

    def __init__(self, model: Janus, signature: Signature) -> None:
        super().__init__(auto_prefix=False)
        self.signature = signature
        self.take_states, self.place_images = body().TakeRows(), PlaceImages()
        self.segments = 3 if takes_slots() else 1
        self.targets = 2 * (signature.text + signature.drawn)
        self.language_model = model.language_model
        if signature.understood:
            self.vision_model, self.aligner = model.vision_model, model.aligner
        if signature.text:
            self.text_head, self.text_loss = model.lm_head, body().CrossEntropy()
        if signature.drawn:
            self.embed_codes = model.embed_codes
            self.image_head, self.image_loss = model.generation_head, body().CrossEntropy()

    def construct(self, *arrays: Tensor) -> Tensor:
        """Sum of −log p(label) over the labels that are not negative.

        arrays: for text targets labels_N and state_rows_N, for image targets the same, then `hidden`'s.
        """
        hidden_PD = self.hidden(*arrays[self.targets :])
        if not self.signature.drawn:
            return self.text_loss(self._logits(self.text_head, hidden_PD, arrays[1]), arrays[0])
        image_logits_NV = self._logits(self.image_head, hidden_PD, arrays[self.targets - 1])
        loss_sum = self.image_loss(image_logits_NV, arrays[self.targets - 2])
        if self.signature.text:
            text_logits_NV = self._logits(self.text_head, hidden_PD, arrays[1])
            loss_sum = loss_sum + self.text_loss(text_logits_NV, arrays[0])
        return loss_sum

    def logits(self, state_rows_N: Tensor, *arrays: Tensor) -> Tensor:
        """Logits (N, V), float32, of the states at `state_rows_N`; for one kind of target."""
        head = self.text_head if self.signature.text else self.image_head
        return self._logits(head, self.hidden(*arrays), state_rows_N)

    def hidden(
        self,
        input_ids_P: Tensor,
        position_ids_P: Tensor,
        *others: Tensor,
    ) -> Tensor:
        """Last hidden states (P, D).

        others: the segments, as `Llama.construct` takes them; then nothing for text, else `image_index_P`,
        `pixels_IHWC` of the understood and `image_tokens_IT` of the drawn pictures.
        """
        segments, images = others[: self.segments], others[self.segments :]
        embeds_PD = self.language_model.embed(input_ids_P)
        if self.signature.understood and self.signature.drawn:
            shown_MD = self.aligner(self.vision_model(images[1]))
            both_MD = ops.concat((shown_MD, self.embed_codes(images[2])), 0)
            embeds_PD = self.place_images(embeds_PD, both_MD, images[0])
        elif self.signature.understood:
            shown_MD = self.aligner(self.vision_model(images[1]))
            embeds_PD = self.place_images(embeds_PD, shown_MD, images[0])
        elif self.signature.drawn:
            embeds_PD = self.place_images(embeds_PD, self.embed_codes(images[1]), images[0])
        return self.language_model(embeds_PD, position_ids_P, *segments)

    def _logits(self, head: nn.Cell, hidden_PD: Tensor, state_rows_N: Tensor) -> Tensor:
        return head(self.take_states(hidden_PD, state_rows_N)).astype("float32")

    def scores(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """For each kind of target −log p(label) and likeliest class, (N,) each, text before images."""
        hidden_PD = self.hidden(*arrays[self.targets :])
        found: tuple[Tensor, ...] = ()
        if self.signature.text:
            logits_NV = self._logits(self.text_head, hidden_PD, arrays[1])
            found = (*found, *self.text_loss.scores(logits_NV, arrays[0]))
        if self.signature.drawn:
            logits_NV = self._logits(self.image_head, hidden_PD, arrays[self.targets - 1])
            found = (*found, *self.image_loss.scores(logits_NV, arrays[self.targets - 2]))
        return found


class TokenScores(nn.Cell):
    """How well one micro-batch is predicted: −log p of each target, and whether it came first."""

    def __init__(self, loss: TaskLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss

    def construct(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """(−log p(label), 1 where the label is the likeliest class), float32 (N,); junk where unused.

        Both for text targets, then both for image targets, where there are any. arrays: those of `TaskLoss`.
        """
        found = self.loss.scores(*arrays)
        result: tuple[Tensor, ...] = ()
        for kind in range(len(found) // 2):
            first = found[2 * kind + 1] == ops.maximum(arrays[2 * kind], 0)
            result = (*result, found[2 * kind], first.astype("float32"))
        return result
