"""Samples beside each other in a call do not touch: another neighbour changes a sample's logits by nothing.

That 1×6, 6×1 and 3×2 give the same losses and parameters is in tests/stream/test_trainer_data.py.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from trainer_shards import CODES, SIDE, TOKENS, make_model, make_trainable, shape_of

from janus.checkpoint.folder import open_model
from janus.model.janus import Janus
from janus.model.loss import TaskLoss
from janus.tokens import JanusTokenizer
from shards.read import ShardSet
from shards.schema import RowBlock, Sample
from trainer.stream.collate import collate
from trainer.stream.shapes import Batch, ImageShape


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    make_model(folder / "model")
    make_trainable(folder / "shards", {"vqa": 3, "text": 3, "t2i": 3})
    return folder


@pytest.fixture(scope="module")
def model(work: Path) -> Janus:
    return open_model(str(work / "model")).build()


def _perturbed(sample: Sample, words: int) -> Sample:
    """Other words and another image of the same length. words: ids below it are no special tokens."""
    ids = np.where(sample.input_ids < words, (sample.input_ids + 5) % words, sample.input_ids)
    image = None if sample.image is None else 255 - sample.image
    tokens = None if sample.image_tokens is None else (sample.image_tokens + 1) % CODES
    return replace(sample, input_ids=ids.astype(np.int32), image=image, image_tokens=tokens)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "own-rows"])
@pytest.mark.parametrize("task", ["text", "vqa", "t2i"])
def test_another_neighbour_changes_logits_by_exactly_nothing(
    work: Path, model: Janus, task: str, packed: bool
) -> None:
    """Whether the samples share a row of attention slots or not."""
    rows = ShardSet.open(work / "shards").rows("train", task)
    samples = [rows.read(i) for i in range(3)]
    special = JanusTokenizer(work / "shards" / "tokenizer").special
    lengths = [len(sample.input_ids) for sample in samples]
    shape = shape_of(task, samples, ImageShape(SIDE, TOKENS, CODES), rows=1 if packed else 3)
    loss = TaskLoss(model, task)

    def logits(middle: Sample) -> tuple[np.ndarray, Batch]:
        (batch,) = collate(task, RowBlock.of([samples[0], middle, samples[2]]), [3], shape, special)
        return loss.logits(*map(Tensor, batch.inputs[1:])).asnumpy(), batch

    before, batch = logits(samples[1])
    after, _ = logits(_perturbed(samples[1], special.bos))
    used = np.flatnonzero(batch.labels_N >= 0)
    own = (batch.state_rows_N[used] >= lengths[0]) & (batch.state_rows_N[used] < sum(lengths[:2]))
    assert own.any()
    assert not own.all()
    np.testing.assert_array_equal(after[used[~own]], before[used[~own]])
    assert np.abs(after[used[own]] - before[used[own]]).max() > 0
