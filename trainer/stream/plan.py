"""Which rows make step k: a function of (seed, task, step) without state.

A task's rows come in a new order every epoch, drawn from (seed, task, epoch); step k takes the next `count`
of them. So each row comes once before any comes twice, and a resumed run needs the step number alone.

The order is random, except that steps, and the micro-batches within each, weigh nearly the same (tokens and
supervised tokens): one static shape then holds each of them with little padding. How a step is cut into
micro-batches does not change its samples.
"""

# Shapes: S steps, C samples of a step, G groups of consecutive samples, E epochs, R rows.

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import xxhash

PLAN_VERSION = 1
"""Raised when the same seed and rows give other steps; runs of an older plan are not resumed."""

ALIKE = 8  # weights are alike within a standard deviation over this
DEALT_ROWS = 4096  # epochs are dealt together up to this: numpy's calls cost more than a short epoch
_BLOCK = 4096  # steps that `sizes` draws at a time


class TaskDraw(NamedTuple):
    """A task's samples in order. indices: int64, of its selected rows. epochs: int64, earlier uses."""

    indices: np.ndarray
    epochs: np.ndarray


class Plan:
    """Every step of a run, for any of its tasks."""

    def __init__(
        self,
        seed: int,
        weights: Mapping[str, np.ndarray],
        counts: Mapping[str, int],
        samples: Mapping[str, int],
    ) -> None:
        """weights: of each selected row (`sample_weights`). counts, samples: of a step, of a micro-batch."""
        self._seed, self._weights, self._counts, self._samples = seed, weights, counts, samples
        self._together = {task: max(1, DEALT_ROWS // len(rows)) for task, rows in weights.items()}
        self.orders = lru_cache(maxsize=8)(self._orders)

    def epochs(self, task: str, steps: int) -> float:
        """Uses of each row of a task after `steps` steps."""
        return steps * self._counts[task] / len(self._weights[task])

    def sizes(self, task: str, steps: int, sizes: np.ndarray) -> np.ndarray:
        """`sizes` (one for each selected row) of the run's micro-batches, int64 (M, N); 0: no sample."""
        count, samples = self._counts[task], self._samples[task]
        blocks = []
        for first in range(1, steps + 1, _BLOCK):
            drawn = self.draw(task, first, min(_BLOCK, steps + 1 - first)).indices
            sizes_SC = sizes[drawn].reshape(-1, count).astype(np.int64)
            blocks.append(np.pad(sizes_SC, ((0, 0), (0, -count % samples))).reshape(-1, samples))
        return np.concatenate(blocks)

    def draw(self, task: str, first: int, steps: int = 1) -> TaskDraw:
        """The samples of `steps` steps from step `first` (1 is the first)."""
        count, size = self._counts[task], len(self._weights[task])
        places = (first - 1) * count + np.arange(steps * count)
        epochs, turns = places // size, places // (size * self._together[task])
        indices = np.empty(len(places), np.int64)
        for turn in range(int(turns[0]), int(turns[-1]) + 1):
            now = turns == turn
            orders = self.orders(task, turn).reshape(-1)
            indices[now] = orders[places[now] - turn * len(orders)]
        order_SC = level(self._weights[task][indices].reshape(steps, count), self._samples[task])
        order = (order_SC + np.arange(steps)[:, None] * count).reshape(-1)
        return TaskDraw(indices[order], epochs[order])

    def _orders(self, task: str, turn: int) -> np.ndarray:
        """The orders of the epochs that are dealt together, int64 (epochs, rows)."""
        weights, count = self._weights[task], self._counts[task]
        epochs = range(turn * self._together[task], (turn + 1) * self._together[task])
        words = np.stack([random_words(len(weights), self._seed, task, "order", epoch) for epoch in epochs])
        orders = np.empty(words.shape, np.int64)
        # The epoch before has taken the first places of a step that this one completes.
        heads = -np.array(epochs) * len(weights) % count
        for head in np.unique(heads).tolist():
            orders[heads == head] = deal(weights, words[heads == head], count, head)
        orders.flags.writeable = False
        return orders


def cut(count: int, micro_batch: int) -> tuple[int, int]:
    """(micro-batches, samples of each) that hold `count` samples evenly: 5 by at most 4 is 2 of 3."""
    micro_batches = -(-count // micro_batch)
    return micro_batches, -(-count // micro_batches)


def sample_weights(tokens: np.ndarray, supervised: np.ndarray) -> np.ndarray:
    """What a sample costs, float64: its share of the tokens plus its share of the supervised ones; mean 2."""
    return tokens / tokens.mean() + supervised / supervised.mean()


def deal(weights: np.ndarray, words: np.ndarray, count: int, head: int) -> np.ndarray:
    """Random orders of the rows, int64, in which `count` consecutive ones weigh nearly the same.

    words: random uint64 (rows,), or (epochs, rows) for several orders. head: rows before the first whole
    group. Rows that fill no whole group are those of middling weight. The others are dealt heaviest first,
    each round to the groups in ascending order of weight (longest-processing-time scheduling, Graham 1969).
    """
    words_ER = np.atleast_2d(words)
    # numpy may change how its own shuffle uses the generator's words.
    shuffled = np.argsort(words_ER, axis=1, kind="stable")
    groups = max(len(weights) - head, 0) // count
    middling = _sorted_by(np.abs(weights - weights.mean())[shuffled], shuffled)
    parts = np.split(middling, [len(weights) - groups * count], axis=1)
    loose, rest = (_sorted_by(np.take_along_axis(words_ER, rows, 1), rows) for rows in parts)
    # Similar weights stay in random order: else the same samples would meet in every epoch.
    alike = max(weights.std() / ALIKE, 1e-9)
    rest = _sorted_by(-np.round(weights / alike)[rest], rest)
    dealt = np.take_along_axis(rest, _rounds(weights[rest], count), 1).reshape(len(words_ER), groups, count)
    first = np.take_along_axis(words_ER, dealt[:, :, 0], 1)
    dealt = np.take_along_axis(dealt, np.argsort(first, axis=1, kind="stable")[:, :, None], 1)
    orders = np.concatenate([loose[:, :head], dealt.reshape(rest.shape), loose[:, head:]], axis=1)
    return orders.reshape(words.shape)


def _sorted_by(keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Each epoch's rows by their keys; ties keep their order."""
    return np.take_along_axis(rows, np.argsort(keys, axis=1, kind="stable"), 1)


def level(weights_SC: np.ndarray, samples: int) -> np.ndarray:
    """Orders of each step, int64 (S, C), as of `deal` for `samples` in a row; the loose samples come last."""
    steps, count = weights_SC.shape
    if samples >= count:
        return np.tile(np.arange(count), (steps, 1))
    sorted_SC = np.argsort(-weights_SC, axis=1, kind="stable")
    loose = count % samples
    middle = (count - loose) // 2 + np.arange(loose)
    rest = np.delete(sorted_SC, middle, axis=1)
    dealt = _rounds(np.take_along_axis(weights_SC, rest, 1), samples)
    return np.concatenate([np.take_along_axis(rest, dealt, 1), sorted_SC[:, middle]], axis=1)


def _rounds(weights_SC: np.ndarray, count: int) -> np.ndarray:
    """Places, int64 (S, C), heaviest given first: `count` in a row are a group, dealt round by round."""
    steps, samples = weights_SC.shape
    groups = samples // count
    dealt = np.empty((steps, groups, count), np.int64)
    sums_SG = np.zeros((steps, groups))
    for turn in range(count):
        dealt_now = np.arange(turn * groups, (turn + 1) * groups)
        lightest = np.argsort(sums_SG, axis=1, kind="stable")
        np.put_along_axis(dealt[:, :, turn], lightest, dealt_now[None], 1)
        sums_SG += np.take_along_axis(weights_SC, dealt[:, :, turn], 1)
    return dealt.reshape(steps, samples)


def null_prompt(seed: int, sample_id: str, epoch: int, share: float) -> bool:
    """Whether the prompt of a sample that draws is nulled in this epoch: by hash, `share` of all."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{epoch}/{sample_id}".encode()) < share * 2.0**64


def by_hash(sample_ids: Iterable[str]) -> np.ndarray:
    """Row indices, int64, in the order of their samples' hashes; the same for every seed."""
    hashes = [xxhash.xxh3_64_intdigest(sample_id.encode()) for sample_id in sample_ids]
    return np.argsort(np.array(hashes, np.uint64), kind="stable")


def random_words(size: int, *key: object) -> np.ndarray:
    """Random uint64 (size,) that are a function of the key alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(size)
