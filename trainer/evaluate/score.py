"""Samples scored as training computes their loss: through one graph of static shape a task.

Shapes: see trainer/stream/shapes.py for a batch's arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np

from janus.common.graph_cache import network_graphs
from janus.model.loss import TaskLoss
from janus.model.scoring import TokenScores
from shards.schema import RowBlock, Sample
from trainer.evaluate.metrics import Score
from trainer.stream.collate import collate
from trainer.stream.plan import deal, random_words, sample_weights
from trainer.stream.shapes import Batch, ImageShape, in_micro_batches, shape_for

if TYPE_CHECKING:
    from janus.model.janus import Janus
    from janus.tokens import SpecialTokens


def score_samples(
    model: Janus, task: str, samples: Sequence[Sample], rows: int, image: ImageShape, special: SpecialTokens
) -> list[Score]:
    """The score of each sample, in order; `rows` at a time. Test samples are taken as well."""
    graphs = network_graphs(model.config)
    graph = graphs.compile(TokenScores(TaskLoss(model, task)), f"score {task}")
    scores: list[Score | None] = [None] * len(samples)
    for places, batch in _batches(task, samples, rows, image, special):
        nll_N, hits_N = (tensor.asnumpy() for tensor in graph(*map(ms.Tensor, batch.inputs)))
        start = 0
        for place in places:
            states = slice(start, start + int(np.diff(samples[place].supervised).sum()))
            scores[place] = Score(float(nll_N[states].sum()), int(hits_N[states].sum()), states.stop - start)
            start = states.stop
    return [score for score in scores if score is not None]


def _batches(
    task: str, samples: Sequence[Sample], rows: int, image: ImageShape, special: SpecialTokens
) -> Iterator[tuple[np.ndarray, Batch]]:
    """(places of the samples, their batch), dealt so that batches weigh nearly the same."""
    tokens = np.array([len(sample.input_ids) for sample in samples])
    states = np.array([np.diff(sample.supervised).sum() for sample in samples])
    rows = min(rows, len(samples))
    order = deal(sample_weights(tokens, states), random_words(len(samples), task, "score"), rows, 0)
    tokens_MN, states_MN = (in_micro_batches(numbers[order], rows) for numbers in (tokens, states))
    shape = shape_for(task, tokens_MN, states_MN, image)
    for start in range(0, len(order), rows):
        places = order[start : start + rows]
        block = RowBlock.of([samples[i] for i in places])
        (batch,) = collate(task, block, [len(block)], shape, special, held_out=True)
        yield places, batch
