"""Samples scored as training computes their loss: through one graph of static shape a task.

Shapes: see trainer/stream/batch.py for a batch's arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np

from janus.common.graph_cache import network_graphs
from janus.model.loss import TaskLoss
from janus.model.scoring import TokenScores
from shards.block import RowBlock
from shards.schema import FIELDS, PLACE, Fields, Sample
from trainer.evaluate.metrics import Score
from trainer.stream.batch import Batch, BatchShape, ImageShape, round_up, shape_for
from trainer.stream.collate import collate
from trainer.stream.feed import in_calls
from trainer.stream.pack import cheapest_rows, fullest_row
from trainer.stream.plan import deal, random_words

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
    weights = tokens / tokens.mean() + states / states.mean()
    rows = min(rows, len(samples))
    order = deal(weights, random_words(len(samples), task, "score")[None], rows, 0)[0]
    shape = _shape(task, rows, tokens[order], states[order], image)
    for start in range(0, len(order), rows):
        places = order[start : start + rows]
        call = RowBlock.of([_row(samples[i]) for i in places])
        (batch,) = collate(task, call, [len(call)], shape, special, held_out=True)
        yield places, batch


def _shape(task: str, samples: int, tokens: np.ndarray, states: np.ndarray, image: ImageShape) -> BatchShape:
    calls, longest = in_calls(tokens, samples), int(tokens.max())
    rows = cheapest_rows(calls, lambda slots: round_up(slots + 1))
    grid = rows, fullest_row(calls, rows)
    fullest = [int(in_calls(sizes, samples).sum(1).max()) for sizes in (tokens, states)]
    return shape_for(task, samples, grid, longest, fullest[0], fullest[1], longest, image)


def _row(sample: Sample) -> Fields:
    """The sample as the row that `collate` takes: of its fields those that decide a batch."""
    row: list[bytes | None] = [None] * len(FIELDS)
    for name in ("sample_id", "task", "split"):
        row[PLACE[name]] = getattr(sample, name).encode()
    row[PLACE["input_ids"]] = sample.input_ids.tobytes()
    for name, ends_N in zip(("span_starts", "span_ends"), sample.supervised.T, strict=True):
        row[PLACE[name]] = ends_N.tobytes()
    for name in ("image", "image_tokens"):
        array = getattr(sample, name)
        row[PLACE[name]] = None if array is None else array.tobytes()
    return row
