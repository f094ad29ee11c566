"""The rows a run uses, and the batches of each step, made ahead while the device works.

Which rows make step k is `trainer/stream/plan.py`'s; here they are read, checked and collated. Every step can
be made at any time and in any order: nothing is used up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from janus.common.errors import UserError
from janus.tokens import SpecialTokens
from shards.block import RowBlock
from shards.read import ShardSet, TaskRows
from shards.schema import Sample
from trainer.config import TrainConfig
from trainer.stream.batch import Batch, BatchShape, ImageShape, round_up, shape_for
from trainer.stream.collate import collate, without_prompts
from trainer.stream.fit import check_row
from trainer.stream.mix import cut
from trainer.stream.pack import cheapest_rows, fullest_row
from trainer.stream.plan import Plan, by_hash, deal, null_prompt, random_words

BLOCKS_AHEAD = 2
BLOCK_TOKENS = 1 << 16
"""Small steps are made so many tokens at a time, so that numpy's calls are shared by many samples. Steps with
images are made one by one: their pixels weigh more than all else."""

TYPICAL_STEPS = 64
"""So many of the first steps show how full a call's rows of attention slots are."""


@dataclass(frozen=True)
class UsedRows:
    """Rows of one task and split that the run may read: `indices` (int64) into `rows`."""

    rows: TaskRows
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, place: int) -> Sample:
        """The sample at a place among the used ones, its content checked."""
        return self.rows.read(int(self.indices[place]))

    def block(self, places: np.ndarray) -> RowBlock:
        """The rows at these places, their content checked."""
        return self.rows.block(self.indices[places])

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each used sample."""
        return self.rows.num_tokens[self.indices]

    @property
    def supervised_tokens(self) -> np.ndarray:
        """Supervised tokens of each used sample."""
        return self.rows.supervised_tokens[self.indices]


@dataclass(frozen=True)
class Drawn:
    """One task's samples of a step, in their order. epochs: how often each came before. a_call: so many."""

    task: str
    sample_ids: list[str]
    epochs: list[int]
    a_call: int


@dataclass(frozen=True)
class StepData:
    """The micro-batches of one step, what they are made of, and the sizes of all of them together."""

    batches: list[tuple[str, Batch]]
    drawn: list[Drawn]

    @property
    def supervised(self) -> int:
        """Supervised tokens of the whole step: what the summed loss is divided by."""
        return sum(batch.supervised for _, batch in self.batches)

    @property
    def samples(self) -> int:
        """Samples of the step."""
        return sum(batch.samples for _, batch in self.batches)

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return sum(batch.tokens for _, batch in self.batches)

    @property
    def slots(self) -> int:
        """Token slots that are computed, padding counted."""
        return sum(batch.input_ids_P.size for _, batch in self.batches)


class Feed:
    """Everything that a run reads: per task its training and validation rows, its shape, and the plan."""

    def __init__(
        self,
        shards: ShardSet,
        config: TrainConfig,
        special: SpecialTokens,
        image: ImageShape,
        begun: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """Choose rows and shapes. Raises UserError for what cannot be trained on.

        begun: sizes of each task's shape (`BatchShape.sizes`) that the run has begun with; they are kept
        where they hold every step, however many there are now.
        """
        self._special, self._seed, self._null_prompt = special, config.seed, config.null_prompt_prob
        self._counts, self._micro_batch = config.counts, config.micro_batch
        counts = config.counts
        self.train = {task: _training_rows(shards, task, config) for task in counts}
        self.validation = _validation_rows(shards, config)
        rows = {task: cut(count, config.micro_batch)[1] for task, count in counts.items()}
        self.plan = Plan(
            config.seed, {task: _weights(used) for task, used in self.train.items()}, counts, rows
        )
        self._begun = begun or {}
        self.shapes = {task: self._shape(task, config, rows[task], image) for task in counts}
        for task, used in self.train.items():
            check_row(task, used.block(np.arange(1)).row(0), self.shapes[task], special)

    def step(self, step: int) -> StepData:
        """The micro-batches of step `step` (1 is the first), task after task."""
        return self.block(step, 1)[0]

    def block(self, first: int, steps: int) -> list[StepData]:
        """`steps` steps from `first` on, made together."""
        tasks = [self._task_steps(task, first, steps) for task in self._counts]
        return [
            StepData(
                [(drawn.task, batch) for drawn, own in step for batch in own], [drawn for drawn, _ in step]
            )
            for step in zip(*tasks, strict=True)
        ]

    @property
    def block_steps(self) -> int:
        """How many steps are best made together."""
        tokens = sum(
            self.shapes[task].tokens * cut(count, self._micro_batch)[0]
            for task, count in self._counts.items()
        )
        return 1 if "vqa" in self._counts else max(1, BLOCK_TOKENS // tokens)

    def validation_batches(self, task: str) -> Iterator[Batch]:
        """The task's validation samples, always in the same order."""
        used, shape = self.validation[task], self.shapes[task]
        order = self._validation_order(task)
        for start in range(0, len(order), shape.samples):
            call = used.block(order[start : start + shape.samples])
            yield from collate(task, call, [len(call)], shape, self._special)

    def _validation_order(self, task: str) -> np.ndarray:
        used, rows = self.validation[task], cut(self._counts[task], self._micro_batch)[1]
        return deal(_weights(used), random_words(len(used), task, "validation")[None], rows, 0)[0]

    def _shape(self, task: str, config: TrainConfig, samples: int, image: ImageShape) -> BatchShape:
        """What holds the fullest call of the run and of its validations."""
        train = self.train[task]
        longest = int(train.num_tokens.max())
        tokens = self.plan.fullest(task, config.steps, train.num_tokens)
        states = self.plan.fullest(task, config.steps, train.supervised_tokens)
        validation = np.zeros((0, samples), np.int64)
        if task in self.validation:
            used, order = self.validation[task], self._validation_order(task)
            validation = in_calls(used.num_tokens[order], samples)
            longest = max(longest, int(used.num_tokens.max()))
            tokens = max(tokens, int(validation.sum(1).max()))
            states = max(states, int(in_calls(used.supervised_tokens[order], samples).sum(1).max()))
        grid = self._grid(task, config.steps, validation)
        shape = shape_for(task, samples, grid, longest, tokens, states, config.max_length, image)
        return shape.at_least(self._begun[task]) if task in self._begun else shape

    def _grid(self, task: str, steps: int, validation: np.ndarray) -> tuple[int, int]:
        """Rows of attention slots, chosen on the first steps, and what the fullest of the run holds."""
        lengths = self.train[task].num_tokens
        first = np.concatenate(list(self.plan.calls(task, min(steps, TYPICAL_STEPS), lengths)))
        rows = cheapest_rows(first, lambda slots: round_up(slots + 1))
        rows = self._begun[task]["rows"] if task in self._begun else rows
        calls = [*self.plan.calls(task, steps, lengths), validation]
        return rows, max(fullest_row(lengths_CN, rows) for lengths_CN in calls if len(lengths_CN))

    def _task_steps(self, task: str, first: int, steps: int) -> list[tuple[Drawn, list[Batch]]]:
        """What each step takes of the task, and its batches."""
        used, count, shape = self.train[task], self._counts[task], self.shapes[task]
        draw = self.plan.draw(task, first, steps)
        rows, epochs = used.block(draw.rows), draw.epochs.tolist()
        ids = [str(sample_id, "utf-8") for sample_id in rows.column("sample_id")]
        if task == "t2i" and self._null_prompt:
            rows = self._nulled(rows, ids, epochs)
        calls = [min(shape.samples, count - start) for start in range(0, count, shape.samples)]
        batches = iter(collate(task, rows, calls * steps, shape, self._special))
        own = [slice(start, start + count) for start in range(0, len(rows), count)]
        return [
            (Drawn(task, ids[step], epochs[step], shape.samples), [next(batches) for _ in calls])
            for step in own
        ]

    def _nulled(self, rows: RowBlock, sample_ids: list[str], epochs: list[int]) -> RowBlock:
        """The t2i rows, some without their prompts: other ones in each epoch."""
        seen = enumerate(zip(sample_ids, epochs, strict=True))
        places = [i for i, (name, epoch) in seen if null_prompt(self._seed, name, epoch, self._null_prompt)]
        return self._without_prompts(rows, places)

    def _without_prompts(self, rows: RowBlock, places: list[int]) -> RowBlock:
        return without_prompts(rows, places, self._special)


def steps_ahead(feed: Feed, first: int, last: int) -> Iterator[tuple[int, StepData, float]]:
    """(step, its data, seconds waited for it) from `first` to `last`, made in a thread ahead of use."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        pending: deque[Future[list[StepData]]] = deque()
        upcoming = iter(range(first, last + 1, feed.block_steps))
        try:
            step = first
            while step <= last:
                while len(pending) <= BLOCKS_AHEAD and (ahead := next(upcoming, None)) is not None:
                    pending.append(pool.submit(feed.block, ahead, min(feed.block_steps, last + 1 - ahead)))
                asked = time.perf_counter()
                block = pending.popleft().result()
                waited = time.perf_counter() - asked
                for data in block:
                    yield step, data, waited
                    step, waited = step + 1, 0.0
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_calls(sizes: np.ndarray, samples: int) -> np.ndarray:
    """Sizes of consecutive samples as calls, (calls, samples); the last one ends with zeros."""
    return np.pad(sizes, (0, -len(sizes) % samples)).reshape(-1, samples)


def _weights(used: UsedRows) -> np.ndarray:
    """What `Plan` makes even: each sample's share of the tokens plus its share of the supervised ones."""
    tokens, supervised = used.num_tokens, used.supervised_tokens
    return tokens / tokens.mean() + supervised / supervised.mean()


def _training_rows(shards: ShardSet, task: str, config: TrainConfig) -> UsedRows:
    rows = shards.rows("train", task)
    used = choose(rows, config.sources, config.samples.get(task))
    if not len(used):
        there = ", ".join(sorted(pc.unique(rows.sources).to_pylist()))
        raise UserError(f"sources: no train/{task} rows of {', '.join(config.sources)}; there are {there}")
    return used


def _validation_rows(shards: ShardSet, config: TrainConfig) -> Mapping[str, UsedRows]:
    """The rows each validation takes, for the tasks that have any: always the same, by hash."""
    there = [task for task in config.counts if ("validation", task) in shards.splits_tasks()]
    used = {
        task: choose(shards.rows("validation", task), config.sources, config.eval_samples) for task in there
    }
    return {task: rows for task, rows in used.items() if len(rows)}


def choose(rows: TaskRows, sources: tuple[str, ...], limit: int | None) -> UsedRows:
    """The rows of the sources (of all, if none are named); of these at most `limit`, by hash."""
    indices = np.arange(len(rows))
    if sources:
        indices = np.flatnonzero(np.isin(rows.sources.to_numpy(), sources))
    if limit is not None and limit < len(indices):
        order = by_hash(rows.sample_ids.take(indices).to_pylist())
        indices = np.sort(indices[order[:limit]])
    used = UsedRows(rows, indices)
    if (empty := np.flatnonzero(used.supervised_tokens == 0)).size:
        name = rows.sample_ids[int(indices[empty[0]])]
        raise UserError(f"{name}: has no supervised tokens, so nothing to learn from; build the shards again")
    return used
