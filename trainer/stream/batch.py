"""What one compiled graph takes: the arrays of a micro-batch, all of static shape.

Samples stand one behind the other on a flat axis of tokens, positions restarting; for attention they stand
in rows of slots, several short ones in a row (trainer/stream/pack.py).
"""

# Shapes: P flat tokens, B rows of S attention slots, N states that predict, I images, T tokens of an image,
# H W C pixels.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from janus.common.errors import UserError

ROUND_TO = 16
"""Sizes are rounded up to a multiple of this."""


@dataclass(frozen=True)
class ImageShape:
    """An image as the model takes it. size: H and W. tokens: T. codes: what an image token is one of."""

    size: int
    tokens: int
    codes: int


@dataclass(frozen=True)
class BatchShape:
    """The static shape of one task's batches. rows: B. length: S. tokens: P. states: N. images: I.

    samples: of a call, at most.
    """

    samples: int
    rows: int
    length: int
    tokens: int
    states: int
    images: int
    image: ImageShape

    @property
    def sizes(self) -> dict[str, int]:
        """What of it depends on the run's samples; sums over more padding round otherwise."""
        return {name: getattr(self, name) for name in ("rows", "length", "tokens", "states")}

    def at_least(self, sizes: Mapping[str, int]) -> BatchShape:
        """The shape that also has these sizes."""
        largest: dict[str, Any] = {name: max(size, sizes[name]) for name, size in self.sizes.items()}
        return replace(self, **largest)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one task; see docs/DESIGN.md for the arrays.

    samples, tokens, supervised: how many real ones it holds.
    """

    input_ids_P: np.ndarray
    position_ids_P: np.ndarray
    image_index_P: np.ndarray
    token_of_BS: np.ndarray
    slot_of_P: np.ndarray
    segment_ids_BS: np.ndarray
    state_rows_N: np.ndarray
    labels_N: np.ndarray
    pixels_IHWC: np.ndarray | None
    image_tokens_IT: np.ndarray | None
    samples: int
    tokens: int
    supervised: int

    @property
    def inputs(self) -> list[np.ndarray]:
        """The arrays in the order its task's loss takes them."""
        arrays = [
            self.labels_N,
            self.state_rows_N,
            self.input_ids_P,
            self.position_ids_P,
            self.token_of_BS,
            self.slot_of_P,
            self.segment_ids_BS,
        ]
        images = self.pixels_IHWC if self.pixels_IHWC is not None else self.image_tokens_IT
        return arrays if images is None else [*arrays, self.image_index_P, images]


def shape_for(
    task: str,
    samples: int,
    grid: tuple[int, int],
    longest: int,
    tokens: int,
    states: int,
    max_length: int,
    image: ImageShape,
) -> BatchShape:
    """The shape that holds every call of the run.

    samples: of a call. grid: its rows for attention, and what the fullest row holds. longest: tokens of the
    longest sample. tokens, states: of the fullest call. One token and one slot of each row stay empty, so
    that what stands for nothing has a place.
    Raises UserError naming the longest sample's length if it exceeds max_length.
    """
    if longest > max_length:
        raise UserError(
            f"max_length: the longest {task} sample has {longest} tokens, more than {max_length}; samples "
            "are never cut, so raise --max-length or build the shards with a shorter limit"
        )
    images = 0 if task == "text" else samples
    rows, length = grid[0], round_up(grid[1] + 1)
    return BatchShape(samples, rows, length, round_up(tokens + 1), round_up(states), images, image)


def round_up(number: int) -> int:
    """To a multiple of ROUND_TO."""
    return -(-number // ROUND_TO) * ROUND_TO
