"""The rows a run uses, and the batches of each step, made ahead while the device works.

`plan.py` says which rows make step k; here they are read, checked and collated, for any step in any order.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from janus.common.errors import UserError
from janus.model.kernels import takes_slots
from janus.prompts import Signature
from janus.tokens import SpecialTokens
from shards.read import ShardSet, TaskRows
from shards.schema import RowBlock, Sample
from trainer.config import TrainConfig
from trainer.stream.collate import Batch, check_rows, collate, without_prompts
from trainer.stream.plan import Plan, by_hash, cut, deal, null_prompt, random_words, sample_weights
from trainer.stream.shapes import BatchShape, Counts, ImageShape, in_micro_batches, shape_for

BLOCKS_AHEAD = 2
BLOCK_TOKENS = 1 << 17
"""Tokens of the steps that are made together, so that numpy's calls are shared by many samples. Steps with
images are made one by one: their pixels cost more than all else."""

TYPICAL_STEPS = 64  # the first steps, on which the attention rows are chosen


class SelectedRows:
    """The rows of one task and split that are used: `indices` (int64) into `rows`."""

    def __init__(self, rows: TaskRows, indices: np.ndarray) -> None:
        self._rows, self.indices = rows, indices
        self.num_tokens, self.supervised_tokens = rows.num_tokens[indices], rows.supervised_tokens[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, place: int) -> Sample:
        """The sample at `place` of the selection, its content checked."""
        return self._rows.read(int(self.indices[place]))

    def block(self, places: np.ndarray) -> RowBlock:
        return self._rows.block(self.indices[places])

    def counts(self, image: ImageShape) -> Counts:
        """Tokens, targets of text and pictures of each, int (rows,)."""
        codes, understood = self._rows.image_tokens[self.indices], self._rows.understood[self.indices]
        return Counts.of(self.num_tokens, self.supervised_tokens, codes, understood, image)

    @property
    def weights(self) -> np.ndarray:
        return sample_weights(self.num_tokens, self.supervised_tokens)

    def even_order(self, samples: int, *key: object) -> np.ndarray:
        """A fixed order of the selected samples, int64, whose micro-batches of `samples` weigh the same."""
        return deal(self.weights, random_words(len(self), *key), samples, 0)


def select_rows(rows: TaskRows, sources: tuple[str, ...], limit: int | None) -> SelectedRows:
    """At most `limit` rows, by hash, of these sources or of all. UserError if one has nothing supervised."""
    indices = np.arange(len(rows))
    if sources:
        indices = np.flatnonzero(np.isin(rows.column("source").to_numpy(), sources))
    if limit is not None and limit < len(indices):
        order = by_hash(rows.column("sample_id").take(indices).to_pylist())
        indices = np.sort(indices[order[:limit]])
    selected = SelectedRows(rows, indices)
    if (empty := np.flatnonzero(selected.supervised_tokens == 0)).size:
        name = rows.column("sample_id")[int(indices[empty[0]])]
        raise UserError(f"{name}: has no supervised tokens, so nothing to learn from; build the shards again")
    return selected


@dataclass(frozen=True)
class DrawnSamples:
    """One task's samples of a step, in order. epochs: earlier uses of each. micro_batch: samples of one."""

    task: str
    sample_ids: list[str]
    epochs: list[int]
    micro_batch: int


@dataclass(frozen=True)
class StepData:
    """The micro-batches of one step, the samples they are made of, and the sizes of all of them together.

    supervised: targets. tokens, slots: without and with padding.
    """

    batches: list[tuple[str, Batch]]
    drawn: list[DrawnSamples]

    @property
    def supervised(self) -> int:
        return sum(batch.supervised for _, batch in self.batches)

    def scales(self, weights: Mapping[str, float]) -> dict[str, float]:
        """What each task's summed loss is multiplied by: its weight w over Σ w·n, n the task's targets.

        So the step's gradient is that of the weighted mean over all targets, and equal weights of any size
        are the plain mean, bit for bit.
        """
        greatest = max(weights.get(task, 1.0) for task, _ in self.batches)
        own = {task: weights.get(task, 1.0) / greatest for task, _ in self.batches}
        total = sum(own[task] * batch.supervised for task, batch in self.batches)
        return {task: weight / total for task, weight in own.items()}

    @property
    def samples(self) -> int:
        return sum(batch.samples for _, batch in self.batches)

    @property
    def tokens(self) -> int:
        return sum(batch.tokens for _, batch in self.batches)

    @property
    def slots(self) -> int:
        return sum(batch.input_ids_P.size for _, batch in self.batches)


class Feed:
    """What a run reads: the plan, and per task its rows, shape and `cuts` (micro-batches, samples of one)."""

    def __init__(
        self,
        shards: ShardSet,
        config: TrainConfig,
        special: SpecialTokens,
        image: ImageShape,
        saved_shapes: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """Select rows and choose shapes. Raises UserError for what cannot be trained on.

        saved_shapes: `BatchShape.sizes` of each task of a resumed run; kept where they hold every step.
        """
        self._special, self._config, counts = special, config, config.counts
        self.device = config.device
        self._counts, saved, limits = counts, saved_shapes or {}, config.samples
        self.cuts = {task: cut(count, config.micro_batch) for task, count in counts.items()}
        self.train = {task: _rows(shards, "train", task, config, limits.get(task)) for task in counts}
        held_out = [task for task in counts if ("validation", task) in shards.splits_tasks()]
        rows = {task: _rows(shards, "validation", task, config, config.eval_samples) for task in held_out}
        self.validation = {task: some for task, some in rows.items() if len(some)}
        weights = {task: rows.weights for task, rows in self.train.items()}
        samples = {task: samples for task, (_, samples) in self.cuts.items()}
        self.plan = Plan(config.seed, weights, counts, samples)
        self.shapes = {task: self._shape(task, image, saved.get(task)) for task in counts}
        for task, own in self.train.items():
            check_rows(task, own.block(np.arange(1)), self.shapes[task], special)

    @property
    def signatures(self) -> dict[str, Signature]:
        """What each task's graph reads and predicts."""
        return {task: shape.signature for task, shape in self.shapes.items()}

    def step(self, step: int) -> StepData:
        """The micro-batches of step `step` (1 is the first), task after task."""
        return self.block(step, 1)[0]

    def block(self, first: int, steps: int) -> list[StepData]:
        """`steps` steps from `first` on, made together."""
        tasks = [self._task_steps(task, first, steps) for task in self._counts]
        return [
            StepData([pair for _, pairs in parts for pair in pairs], [drawn for drawn, _ in parts])
            for parts in zip(*tasks, strict=True)
        ]

    @property
    def block_steps(self) -> int:
        """The number of steps that are made together."""
        tokens = sum(self.shapes[task].tokens * count for task, (count, _) in self.cuts.items())
        return (
            1 if any(shape.understood for shape in self.shapes.values()) else max(1, BLOCK_TOKENS // tokens)
        )

    def validation_batches(self, task: str) -> Iterator[Batch]:
        """The task's validation samples, always in the same order."""
        rows, shape = self.validation[task], self.shapes[task]
        order = rows.even_order(shape.samples, task, "validation")
        for start in range(0, len(order), shape.samples):
            block = rows.block(order[start : start + shape.samples])
            yield from collate(task, block, [len(block)], shape, self._special)

    def _shape(self, task: str, image: ImageShape, saved: Mapping[str, int] | None) -> BatchShape:
        """The shape that holds every micro-batch of the run and of its validations."""
        train, steps, (count, samples) = self.train[task], self._config.steps, self.cuts[task]
        counts = [train.counts(image).each(lambda own: self.plan.sizes(task, steps, own))]
        if rows := self.validation.get(task):
            order = rows.even_order(samples, task, "validation")
            counts.append(rows.counts(image).each(lambda own: in_micro_batches(own[order], samples)))
        typical = count * min(steps, TYPICAL_STEPS)
        slots = takes_slots(self.device)
        return shape_for(Counts.joined(counts), image, slots=slots, typical=typical, saved=saved)

    def _task_steps(
        self, task: str, first: int, steps: int
    ) -> Iterator[tuple[DrawnSamples, list[tuple[str, Batch]]]]:
        """The task's samples and batches of each step."""
        count, shape, config = self._counts[task], self.shapes[task], self._config
        draw = self.plan.draw(task, first, steps)
        rows, epochs = self.train[task].block(draw.indices), draw.epochs.tolist()
        if shape.drawn and config.null_prompt_prob:
            uses, share = enumerate(zip(rows.sample_ids, epochs, strict=True)), config.null_prompt_prob
            nulled = [i for i, (name, epoch) in uses if null_prompt(config.seed, name, epoch, share)]
            rows = without_prompts(rows, nulled, self._special)
        sizes = [min(shape.samples, count - start) for start in range(0, count, shape.samples)]
        batches = iter(collate(task, rows, sizes * steps, shape, self._special))
        for own in (slice(start, start + count) for start in range(0, len(rows), count)):
            drawn = DrawnSamples(task, rows.sample_ids[own], epochs[own], shape.samples)
            yield drawn, [(task, next(batches)) for _ in sizes]


def _rows(shards: ShardSet, split: str, task: str, config: TrainConfig, limit: int | None) -> SelectedRows:
    """The task's rows of a split. Raises UserError if one is too long, or if there are none to train on."""
    rows = shards.rows(split, task)
    selected = select_rows(rows, config.sources, limit)
    if split == "train" and not len(selected):
        found = ", ".join(sorted(pc.unique(rows.column("source")).to_pylist()))
        raise UserError(f"sources: no train/{task} rows of {', '.join(config.sources)}; there are {found}")
    if (longest := int(selected.num_tokens.max(initial=0))) > config.max_length:
        raise UserError(
            f"max_length: the longest {task} sample has {longest} tokens, more than {config.max_length}; "
            "samples are never cut, so raise --max-length or build the shards with a shorter limit"
        )
    return selected


def _ready(feed: Feed, first: int, steps: int) -> list[StepData]:
    """A block of steps; on Ascend its arrays are on their way to the device."""
    block = feed.block(first, steps)
    if feed.device == "Ascend":
        _ = [batch.tensors for data in block for _, batch in data.batches]
    return block


def steps_ahead(feed: Feed, first: int, last: int) -> Iterator[tuple[int, StepData, float]]:
    """(step, its data, seconds waited for it) from `first` to `last`, made in a thread ahead of use."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        pending: deque[Future[list[StepData]]] = deque()
        upcoming = iter(range(first, last + 1, feed.block_steps))
        try:
            step = first
            while step <= last:
                while len(pending) <= BLOCKS_AHEAD and (ahead := next(upcoming, None)) is not None:
                    pending.append(pool.submit(_ready, feed, ahead, min(feed.block_steps, last + 1 - ahead)))
                began = time.perf_counter()
                block = pending.popleft().result()
                waited = time.perf_counter() - began
                for data in block:
                    yield step, data, waited
                    step, waited = step + 1, 0.0
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
