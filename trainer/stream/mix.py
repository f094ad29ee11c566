"""From a ratio and a batch size to the exact number of samples of each task in every step."""

from collections.abc import Mapping
from math import gcd

from janus.common.errors import UserError
from janus.prompts import TASK_ORDER


def step_ratio(task: str, ratio: Mapping[str, int], samples: Mapping[str, int]) -> dict[str, int]:
    """Samples per task in the smallest exact step, without tasks that have none.

    Fixed numbers of samples decide the ratio, so that each is seen equally often. Raises UserError if no task
    has any.
    """
    if task != "mixed":
        return {task: 1}
    chosen = samples or ratio
    parts = {name: chosen[name] for name in TASK_ORDER if chosen.get(name, 0)}
    if not parts:
        raise UserError("ratio: every task has 0; give at least one task a share, for example 5:1:4")
    shared = gcd(*parts.values())
    return {name: part // shared for name, part in parts.items()}


def default_batch_size(ratio: Mapping[str, int], at_least: int = 8) -> int:
    """The smallest batch of at least `at_least` samples that holds the ratio exactly."""
    total = sum(ratio.values())
    return -(-at_least // total) * total


def counts_per_step(ratio: Mapping[str, int], batch_size: int) -> dict[str, int]:
    """Samples of each task in every step. UserError with sizes that hold the ratio if this one does not."""
    total = sum(ratio.values())
    if batch_size % total:
        below, above = batch_size // total * total, -(-batch_size // total) * total
        fitting = " or ".join(str(size) for size in (below, above) if size)
        written = ":".join(str(ratio.get(task, 0)) for task in TASK_ORDER)
        raise UserError(
            f"batch_size: {batch_size} samples cannot be {'+'.join(map(str, ratio.values()))} parts of "
            f"{written} (vqa:text:t2i) in every step; use {fitting}"
        )
    return {task: part * batch_size // total for task, part in ratio.items()}


def cut(count: int, micro_batch: int) -> tuple[int, int]:
    """(micro-batches, samples of each) that hold `count` samples evenly: 5 by at most 4 is 2 of 3."""
    micro_batches = -(-count // micro_batch)
    return micro_batches, -(-count // micro_batches)
