"""What the tests of the Ascend kernels share."""

from collections.abc import Callable
from dataclasses import replace

import cann
import pytest
from trainer_shards import CODES, SIDE, TOKENS, make_trainable, shape_of

from janus.tokens import JanusTokenizer
from shards.read import ShardSet
from shards.schema import RowBlock
from trainer.stream.collate import collate
from trainer.stream.shapes import Batch, ImageShape


@pytest.fixture
def on_cann(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Ascend kernels are in use, and CANN's operations run in NumPy."""
    cann.install(monkeypatch)


@pytest.fixture(scope="session")
def batch_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Batch]:
    """Gives a task's micro-batch as collate makes it for Ascend: two samples, room for a third."""
    tasks = dict.fromkeys(("text", "vqa", "t2i", "edit"), 2)
    folder = make_trainable(tmp_path_factory.mktemp("shards"), tasks)
    shards, special = ShardSet.open(folder), JanusTokenizer(folder / "tokenizer").special

    def batch(task: str) -> Batch:
        rows = shards.rows("train", task)
        samples = [rows.read(i) for i in range(2)]
        shape = shape_of(samples, ImageShape(SIDE, TOKENS, CODES), spare=1)
        shape = replace(shape, attention_rows=0, length=0)
        return collate(task, RowBlock.of(samples), [2], shape, special)[0]

    return batch
