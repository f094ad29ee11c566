"""Conversations with two pictures against transformers' Janus: laid out, collated and predicted by us.

Needs the extra `parity`; run by `make test-parity`.

Shapes: N states that predict, V classes.
"""

from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install '.[parity]'")

from paths import GOLDEN, needs_shared  # noqa: E402
from rounding import logits_bound, rounding_bound  # noqa: E402

from janus.checkpoint.folder import open_model  # noqa: E402
from janus.inspect.verify import open_cases  # noqa: E402
from janus.model.loss import TaskLoss  # noqa: E402
from janus.prompts import Message, encode_samples  # noqa: E402
from janus.tokens import SpecialTokens  # noqa: E402
from shards.schema import RowBlock, Sample  # noqa: E402
from trainer.stream.collate import collate  # noqa: E402
from trainer.stream.shapes import Counts, ImageShape, shape_for  # noqa: E402

pytestmark = needs_shared

FOLDER = GOLDEN / "tiny" / "hf-format"
IMAGE = {"image_placeholder": 1021, "begin_of_image": 1022, "end_of_image": 1023}
CONVERSATIONS = [
    [Message("user", "which of the two is larger ?", ("0", "1")), Message("assistant", "the first one")],
    [
        Message("user", "what is this ?", ("1",)),
        Message("assistant", "a lung"),
        Message("user", "and what is"),
        Message("user", "that, in words ?", ("0",)),
        Message("assistant", "nothing that I know"),
    ],
]


class Words:
    """In place of a tokenizer, which the reference has not: an id for each word."""

    special = SpecialTokens(bos=1, eos=2, user=3, assistant=4, pad=1020, **IMAGE)

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        return [[5 + crc32(word.encode()) % 1000 for word in text.split()] for text in texts]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    pixels = open_cases(GOLDEN / "tiny").arrays["image_uint8"]
    tokens = open_model(str(FOLDER)).config.num_image_tokens
    encoded = encode_samples(Words(), CONVERSATIONS, tokens)
    made = [
        Sample(
            **dict.fromkeys(("source", "source_key", "sha256", "prompt", "answer"), ""),
            sample_id=str(number),
            task="vqa",
            split="train",
            messages=tuple(messages),
            input_ids=sample.input_ids,
            supervised=sample.supervised,
            image_tokens=np.array([], np.uint16),
            images=[pixels[int(name)] for m in messages for name in m.pictures],
        )
        for number, (messages, sample) in enumerate(zip(CONVERSATIONS, encoded, strict=True))
    ]
    assert [len(sample.images) for sample in made] == [2, 2]
    return made


@pytest.fixture(scope="module")
def theirs(samples: list[Sample]) -> tuple[np.ndarray, float]:
    """Logits (N, V) of the states that predict, and the summed loss, one sample at a time."""
    from transformers import JanusForConditionalGeneration

    network = JanusForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()
    logits, loss_sum = [], 0.0
    for sample in samples:
        ids_S = torch.from_numpy(sample.input_ids).long()
        labels_S, pixels = torch.full_like(ids_S, -100), torch.from_numpy(np.stack(sample.images))
        for start, end, _ in sample.supervised.tolist():
            labels_S[start:end] = ids_S[start:end]
        shown = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            found = network(input_ids=ids_S[None], pixel_values=shown, labels=labels_S[None])
        targets = (labels_S >= 0).nonzero()[:, 0]
        logits.append(found.logits[0, targets - 1].numpy())
        loss_sum += float(found.loss) * len(targets)
    return np.concatenate(logits), loss_sum


def _ours(samples: list[Sample]) -> tuple[np.ndarray, float]:
    """The same, all samples in one batch."""
    from mindspore import Tensor

    model = open_model(str(FOLDER)).build()
    counts = Counts(
        tokens=np.array([[len(sample.input_ids) for sample in samples]]),
        targets=np.array([[int(np.ptp(sample.supervised[:, :2], 1).sum()) for sample in samples]]),
        understood=np.array([[len(sample.images) for sample in samples]]),
        drawn=np.zeros((1, len(samples)), np.int64),
    )
    shape = shape_for(counts, ImageShape.of(model.config))
    (batch,) = collate("vqa", RowBlock.of(samples), [len(samples)], shape, Words.special)
    loss, arrays = TaskLoss(model, shape.signature), [Tensor(array) for array in batch.inputs]
    return loss.logits(*arrays[1:]).asnumpy()[: batch.supervised], float(loss(*arrays).asnumpy())


def _bound(theirs: tuple[np.ndarray, float]) -> float:
    return logits_bound(open_model(str(FOLDER)).config, "vqa", theirs[0])


def test_logits_and_loss_of_two_pictures_are_transformers(samples: list[Sample], theirs: tuple) -> None:
    (ours_NV, our_loss), (theirs_NV, their_loss) = _ours(samples), theirs
    np.testing.assert_allclose(ours_NV, theirs_NV, rtol=0, atol=_bound(theirs))
    # A target's loss moves by at most twice what its logits do, and rounds over its classes.
    positions, classes = theirs_NV.shape
    rounded = rounding_bound(their_loss, classes, 2)
    assert our_loss == pytest.approx(their_loss, rel=0, abs=2 * positions * _bound(theirs) + rounded)


def test_the_order_of_the_pictures_shows(samples: list[Sample], theirs: tuple) -> None:
    exchanged = [replace(sample, images=sample.images[::-1]) for sample in samples]
    assert np.abs(_ours(exchanged)[0] - theirs[0]).max() > 10 * _bound(theirs)
