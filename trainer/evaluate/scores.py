"""How well a network predicts held-out samples: −log p and hits of their targets, as training computes them.

Shapes: see trainer/stream/shapes.py for a batch's arrays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor

from janus.common.graph_cache import network_graphs
from janus.model.janus import Janus
from janus.model.loss import TaskLoss, TokenScores
from janus.tokens import SpecialTokens
from shards.schema import RowBlock, Sample
from trainer.stream.collate import collate
from trainer.stream.plan import deal, random_words, sample_weights
from trainer.stream.shapes import Batch, ImageShape, in_micro_batches, shape_for


@dataclass(frozen=True)
class Score:
    """Of a sample or a batch: −log p summed over its targets; hits: targets that were the likeliest token."""

    nll: float
    hits: int
    targets: int


def mean_scores(scores: Sequence[Score]) -> dict[str, float]:
    """loss (−log p per target), token_accuracy, and the number of targets as `tokens`."""
    nll, hits, targets = (
        sum(getattr(score, name) for score in scores) for name in ("nll", "hits", "targets")
    )
    return {"loss": nll / targets, "token_accuracy": hits / targets, "tokens": targets}


def score_batch(
    token_scores: Callable[..., Any], batch: Batch, targets: Sequence[int] | None = None
) -> list[Score]:
    """The score of each sample, in order, or of the whole batch. targets: how many each sample has."""
    nll_N, hits_N = (tensor.asnumpy() for tensor in token_scores(*map(Tensor, batch.inputs)))
    scores, start = [], 0
    for count in targets if targets is not None else [batch.supervised]:
        own = slice(start, start := start + count)
        scores.append(Score(float(nll_N[own].sum()), int(hits_N[own].sum()), count))
    return scores


def score_samples(
    model: Janus, task: str, samples: Sequence[Sample], size: int, image: ImageShape, special: SpecialTokens
) -> list[Score]:
    """The score of each sample, also a test one, in order; `size` a batch, dealt to weigh nearly the same."""
    token_scores = network_graphs(model.config).compile(TokenScores(TaskLoss(model, task)), f"score {task}")
    size = min(size, len(samples))
    tokens = np.array([len(sample.input_ids) for sample in samples])
    targets = np.array([np.diff(sample.supervised).sum() for sample in samples])
    order = deal(sample_weights(tokens, targets), random_words(len(samples), task, "score"), size, 0)
    tokens_MN, targets_MN = (in_micro_batches(counts[order], size) for counts in (tokens, targets))
    shape = shape_for(task, tokens_MN, targets_MN, image)
    scores: dict[int, Score] = {}
    for start in range(0, len(order), size):
        places = order[start : start + size].tolist()
        block = RowBlock.of([samples[i] for i in places])
        (batch,) = collate(task, block, [len(block)], shape, special, held_out=True)
        scores |= zip(places, score_batch(token_scores, batch, targets[places].tolist()), strict=True)
    return [scores[i] for i in range(len(samples))]
