"""How well a network predicts held-out samples: −log p and hits of their targets, as training computes them.

Shapes: see trainer/stream/shapes.py for a batch's arrays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus.common.graph_cache import network_graphs
from janus.model.janus import Janus
from janus.model.kernels import takes_slots
from janus.model.loss import TaskLoss, TokenScores
from janus.prompts import IMAGE, TEXT
from janus.tokens import SpecialTokens
from shards.schema import RowBlock, Sample
from trainer.stream.collate import collate
from trainer.stream.plan import deal, random_words, sample_weights
from trainer.stream.shapes import Batch, Counts, ImageShape, in_micro_batches, shape_for


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
    token_scores: Callable[..., Any], batch: Batch, targets: Sequence[Sequence[int]] | None = None
) -> list[Score]:
    """The score of each sample of a batch, in order; of the whole batch if `targets` is None.

    token_scores: a task's `TokenScores`, compiled or not. targets: how many of text and of images each sample
    has.
    """
    arrays = [tensor.asnumpy() for tensor in token_scores(*batch.tensors)]
    labels = {TEXT: batch.labels_N, IMAGE: batch.image_labels_N}
    kinds = [kind for kind, own in labels.items() if own is not None]
    pairs = {kind: arrays[2 * i : 2 * i + 2] for i, kind in enumerate(kinds)}
    whole = [int((own >= 0).sum()) if own is not None else 0 for own in labels.values()]
    scores, starts = [], [0, 0]
    for counts in targets if targets is not None else [whole]:
        nll, hits = 0.0, 0
        for kind, count in enumerate(counts):
            if count:
                own = slice(starts[kind], starts[kind] + count)
                nll, hits = nll + float(pairs[kind][0][own].sum()), hits + int(pairs[kind][1][own].sum())
                starts[kind] += count
        scores.append(Score(nll, hits, sum(counts)))
    return scores


def score_samples(
    model: Janus, task: str, samples: Sequence[Sample], size: int, image: ImageShape, special: SpecialTokens
) -> list[Score]:
    """The score of each sample, in order, through one graph of static shape; test samples are allowed.

    size: samples per batch, dealt so that batches weigh nearly the same.
    """
    size = min(size, len(samples))
    block = RowBlock.of(samples)
    targets = np.array([np.diff(sample.supervised[:, :2]).sum() for sample in samples])
    order = deal(sample_weights(block.lengths_R, targets), random_words(len(samples), task, "score"), size, 0)
    counts = Counts.of(block.lengths_R, targets, block.codes_R, block.images_R, image)
    counts_MN = counts.each(lambda own: in_micro_batches(own[order], size))
    shape = shape_for(counts_MN, image, slots=takes_slots())
    cell = TokenScores(TaskLoss(model, shape.signature))
    token_scores = network_graphs(model.config).compile(cell, f"score {task}")
    kinds = np.stack([counts.targets, block.codes_R], 1)
    scores: dict[int, Score] = {}
    for start in range(0, len(order), size):
        places = order[start : start + size].tolist()
        block = RowBlock.of([samples[i] for i in places])
        (batch,) = collate(task, block, [len(block)], shape, special, held_out=True)
        scores |= zip(places, score_batch(token_scores, batch, kinds[places].tolist()), strict=True)
    return [scores[i] for i in range(len(samples))]
