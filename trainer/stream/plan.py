"""Which rows make step k: index arithmetic on (seed, task, step), no iterator that is used up.

A task's rows stand in a new order every epoch, drawn from (seed, task, epoch); step k takes the next
`count` places. So each row comes once before any comes twice, resuming needs the step number alone,
and everyone who knows the seed knows every step of every task.

The order is random, but for one thing: steps, and the calls within each, are dealt so that they weigh nearly
the same (tokens and supervised tokens), which lets one static shape hold each of them with little padding.
How a step is cut into calls does not change which samples make it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xxhash

PLAN_VERSION = 1
"""Raised when the same seed and rows give other steps: then no run of an older plan is gone on with."""


class Plan:
    """Every step of a run, for any of its tasks."""

    def __init__(
        self,
        seed: int,
        weights: Mapping[str, np.ndarray],
        counts: Mapping[str, int],
        rows: Mapping[str, int],
    ) -> None:
        """weights: per task, float64 of each row to choose from. counts: samples of each task in every step.

        rows: samples of each task in a call. It has no say in which samples make a step, only in their order:
        so that the calls of a step weigh the same.
        """
        self._seed, self._weights, self._counts, self._rows = seed, weights, counts, rows
        self.orders = lru_cache(maxsize=8)(self._orders)

    def step(self, step: int) -> dict[str, TaskDraw]:
        """What step `step` (1 is the first) is made of, per task."""
        return {task: self.draw(task, step, 1) for task in self._counts}

    def epochs(self, task: str, steps: int) -> float:
        """How often each row of a task will have been seen after `steps` steps."""
        return steps * self._counts[task] / len(self._weights[task])

    def fullest(self, task: str, steps: int, sizes: np.ndarray) -> int:
        """The largest sum of `sizes` (one for each row) in any call of `steps` steps."""
        return max(int(sizes_CN.sum(1).max()) for sizes_CN in self.calls(task, steps, sizes))

    def calls(self, task: str, steps: int, sizes: np.ndarray) -> Iterator[np.ndarray]:
        """`sizes` (one for each row) of every call's samples, int64 (calls, samples), many calls at a time.

        A call that is not full ends with zeros.
        """
        count, rows, block = self._counts[task], self._rows[task], 4096
        for first in range(1, steps + 1, block):
            drawn = self.draw(task, first, min(block, steps + 1 - first)).rows
            sizes_SN = np.pad(sizes[drawn].reshape(-1, count), ((0, 0), (0, -count % rows)))
            yield sizes_SN.reshape(-1, rows)

    def draw(self, task: str, first: int, steps: int) -> TaskDraw:
        """What `steps` steps from step `first` on take of a task, step after step."""
        count = self._counts[task]
        places = (first - 1) * count + np.arange(steps * count)
        size = len(self._weights[task])
        epochs = places // size
        rows = np.empty(len(places), np.int64)
        together = epochs_together(size)
        for turn in range(int(epochs[0]) // together, int(epochs[-1]) // together + 1):
            here = epochs // together == turn
            rows[here] = self.orders(task, turn).reshape(-1)[places[here] - turn * together * size]
        order = calls_apart(self._weights[task][rows].reshape(steps, count), self._rows[task])
        order = (order + np.arange(steps)[:, None] * count).reshape(-1)
        return TaskDraw(rows[order], epochs[order])

    def _orders(self, task: str, turn: int) -> np.ndarray:
        """The orders of the epochs that are dealt together, int64 (epochs, rows)."""
        weights, group = self._weights[task], self._counts[task]
        together = epochs_together(len(weights))
        epochs = np.arange(turn * together, (turn + 1) * together)
        words = np.stack(
            [random_words(len(weights), self._seed, task, "order", epoch) for epoch in epochs.tolist()]
        )
        orders = np.empty(words.shape, np.int64)
        # The epoch before has taken the first places of a group that this one fills up.
        heads = -epochs * len(weights) % group
        for head in np.unique(heads).tolist():
            orders[heads == head] = deal(weights, words[heads == head], group, head)
        orders.flags.writeable = False
        return orders


DEALT_ROWS = 4096
"""Epochs of few rows are dealt together, up to so many rows: numpy's calls cost more than a short epoch."""


def epochs_together(rows: int) -> int:
    """How many epochs of so many rows are dealt together."""
    return max(1, DEALT_ROWS // rows)


ALIKE = 8
"""Weights are alike within a standard deviation over this."""


@dataclass(frozen=True)
class TaskDraw:
    """rows: int64 (count,), which rows, in order. epochs: int64 (count,), how often each came before."""

    rows: np.ndarray
    epochs: np.ndarray


def null_prompt(seed: int, sample_id: str, epoch: int, share: float) -> bool:
    """Whether a t2i sample's prompt is nulled in this epoch, for classifier-free guidance.

    True for `share` of all samples and epochs, by a hash of seed, sample and epoch.
    """
    return xxhash.xxh3_64_intdigest(f"{seed}/{epoch}/{sample_id}".encode()) < share * 2.0**64


def deal(weights: np.ndarray, words: np.ndarray, count: int, head: int) -> np.ndarray:
    """Random orders of the rows, int64 (epochs, rows), `count` consecutive ones weighing nearly the same.

    weights: float64 (rows,). words: random uint64 (epochs, rows). head: rows before the first whole group.
    Rows that fill no whole group are those of middling weight. The others are dealt heaviest first, each
    round to the groups in the order of what they still lack (as longest-processing-time scheduling, Graham
    1969, a round at a time).
    """
    # From the generator's raw words: numpy may change how its own shuffle uses them.
    shuffled = np.argsort(words, axis=1, kind="stable")
    groups = max(len(weights) - head, 0) // count
    middling = _sorted_by(np.abs(weights - weights.mean()), shuffled)
    loose, rest = np.split(middling, [len(weights) - groups * count], axis=1)
    loose, rest = (_by_words(words, rows) for rows in (loose, rest))
    # Like weights in random order: else the same samples would meet in every epoch.
    alike = max(weights.std() / ALIKE, 1e-9)
    rest = _sorted_by(-np.round(weights / alike), rest)
    dealt = np.take_along_axis(rest, _rounds(weights[rest], count), 1).reshape(len(words), groups, count)
    first = np.take_along_axis(words, dealt[:, :, 0], 1)
    dealt = np.take_along_axis(dealt, np.argsort(first, axis=1, kind="stable")[:, :, None], 1)
    return np.concatenate([loose[:, :head], dealt.reshape(rest.shape), loose[:, head:]], axis=1)


def _sorted_by(keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """rows, int64 (epochs, samples), each epoch's by a key of each row, (rows,); ties stay as they are."""
    return np.take_along_axis(rows, np.argsort(keys[rows], axis=1, kind="stable"), 1)


def _by_words(words: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The same by each epoch's own words."""
    order = np.argsort(np.take_along_axis(words, rows, 1), axis=1, kind="stable")
    return np.take_along_axis(rows, order, 1)


def calls_apart(weights: np.ndarray, rows: int) -> np.ndarray:
    """Orders, int64 (steps, count): every `rows` consecutive samples of a step weigh nearly the same.

    weights: float64 (steps, count). As `deal`; samples that fill no whole call come last.
    """
    steps, count = weights.shape
    if rows >= count:
        return np.tile(np.arange(count), (steps, 1))
    sorted_ = np.argsort(-weights, axis=1, kind="stable")
    loose = count % rows
    middle = (count - loose) // 2 + np.arange(loose)
    rest = np.delete(sorted_, middle, axis=1)
    dealt = _rounds(np.take_along_axis(weights, rest, 1), rows)
    return np.concatenate([np.take_along_axis(rest, dealt, 1), sorted_[:, middle]], axis=1)


def _rounds(weights: np.ndarray, count: int) -> np.ndarray:
    """Places, int64 (steps, samples): `count` consecutive ones are a group, dealt to it round by round.

    weights: float64 (steps, samples), each step's heaviest first.
    """
    steps, samples = weights.shape
    groups = samples // count
    dealt = np.empty((steps, groups, count), np.int64)
    sums = np.zeros((steps, groups))
    for turn in range(count):
        given = np.arange(turn * groups, (turn + 1) * groups)
        lightest = np.argsort(sums, axis=1, kind="stable")
        np.put_along_axis(dealt[:, :, turn], lightest, given[None], 1)
        sums += np.take_along_axis(weights, dealt[:, :, turn], 1)
    return dealt.reshape(steps, samples)


def by_hash(sample_ids: Iterable[str]) -> np.ndarray:
    """Row indices in the order of their samples' hash, int64: a fixed draw that no seed changes."""
    hashes = [xxhash.xxh3_64_intdigest(sample_id.encode()) for sample_id in sample_ids]
    return np.argsort(np.array(hashes, np.uint64), kind="stable")


def random_words(size: int, *key: object) -> np.ndarray:
    """Random uint64 (size,) that are a function of the key alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(size)
