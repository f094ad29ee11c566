"""What one compiled graph takes: the arrays of a micro-batch, all of static shape.

Samples follow each other on a flat axis of tokens, positions restarting; for attention they share rows of
slots, separated by segment ids. Attention costs rows × length², so short samples share a row.
"""

# Shapes: M micro-batches, N samples of one. Of a `Batch`: P flat tokens, B attention rows of S slots, N
# states that predict, I images, T tokens of an image, H W C pixels.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from janus.model.config import JanusConfig

ROUND_TO = 16  # sizes are rounded up to a multiple


@dataclass(frozen=True)
class ImageShape:
    """An image as the model takes it. size: pixels a side. tokens: its length. codes: in the code book."""

    size: int
    tokens: int
    codes: int

    @classmethod
    def of(cls, model: JanusConfig) -> Self:
        return cls(model.vision.image_size, model.num_image_tokens, model.vq.num_embeddings)


@dataclass(frozen=True)
class BatchShape:
    """The static shape of one task's micro-batches.

    samples: at most, in a micro-batch. attention_rows, length: rows of attention slots, and slots of a row.
    tokens: of the flat axis. states: that predict, one for each target. images: at most.
    """

    samples: int
    attention_rows: int
    length: int
    tokens: int
    states: int
    images: int
    image: ImageShape

    @property
    def sizes(self) -> dict[str, int]:
        """What depends on the run's samples. A resumed run keeps it: other padding changes how sums round."""
        sizes = {"length": self.length, "tokens": self.tokens, "states": self.states}
        return {"rows": self.attention_rows, **sizes}


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one task; arrays as in docs/step.md. samples, tokens, supervised: real ones."""

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
        arrays = [self.labels_N, self.state_rows_N, self.input_ids_P, self.position_ids_P]
        arrays += [self.token_of_BS, self.slot_of_P, self.segment_ids_BS]
        images = self.pixels_IHWC if self.pixels_IHWC is not None else self.image_tokens_IT
        return arrays if images is None else [*arrays, self.image_index_P, images]


def shape_for(
    task: str,
    tokens_MN: np.ndarray,
    supervised_MN: np.ndarray,
    image: ImageShape,
    *,
    typical: int | None = None,
    saved: Mapping[str, int] | None = None,
) -> BatchShape:
    """The smallest shape that holds each of these micro-batches.

    tokens_MN, supervised_MN: of each sample, 0 where there is none. typical: number of first micro-batches
    that decide the attention rows. saved: sizes of an earlier shape, kept where they are large enough.
    One token and one slot of each row stay empty, so that padding has a place to point at.
    """
    samples, least = tokens_MN.shape[1], saved or {}
    rows = least.get("rows") or cheapest_rows(tokens_MN[:typical])
    length = max(round_up(fullest_row(tokens_MN, rows) + 1), least.get("length", 0))
    tokens = max(round_up(int(tokens_MN.sum(1).max()) + 1), least.get("tokens", 0))
    states = max(round_up(int(supervised_MN.sum(1).max())), least.get("states", 0))
    images = 0 if task == "text" else samples
    return BatchShape(samples, rows, length, tokens, states, images, image)


def pack(lengths_MN: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(attention row, first slot) of each sample of each micro-batch, both int64 (M, N).

    Longest first, each to the least full row (longest-processing-time scheduling, Graham 1969); with enough
    rows each sample has its own.
    """
    micro_batches, samples = lengths_MN.shape
    if rows >= samples:
        shape = (micro_batches, samples)
        return np.broadcast_to(np.arange(samples), shape), np.zeros(shape, np.int64)
    row_MN, slot_MN = np.empty((2, micro_batches, samples), np.int64)
    filled = np.zeros((micro_batches, rows), np.int64)
    for places in np.argsort(-lengths_MN, axis=1, kind="stable").T[:, :, None]:
        least = filled.argmin(1)[:, None]
        slots = np.take_along_axis(filled, least, 1)
        np.put_along_axis(row_MN, places, least, 1)
        np.put_along_axis(slot_MN, places, slots, 1)
        np.put_along_axis(filled, least, slots + np.take_along_axis(lengths_MN, places, 1), 1)
    return row_MN, slot_MN


def fullest_row(lengths_MN: np.ndarray, rows: int) -> int:
    """Slots that the fullest attention row of any micro-batch holds."""
    return int((pack(lengths_MN, rows)[1] + lengths_MN).max())


def cheapest_rows(lengths_MN: np.ndarray) -> int:
    """The number of attention rows with which attention over these micro-batches costs least."""
    numbers = range(lengths_MN.shape[1], 0, -1)
    return min(numbers, key=lambda rows: rows * round_up(fullest_row(lengths_MN, rows) + 1) ** 2)


def in_micro_batches(sizes: np.ndarray, samples: int) -> np.ndarray:
    """Sizes of consecutive samples, int64 (micro-batches, samples); the last micro-batch ends with zeros."""
    return np.pad(sizes, (0, -len(sizes) % samples)).reshape(-1, samples).astype(np.int64)


def round_up(number: int) -> int:
    """To a multiple of ROUND_TO."""
    return -(-number // ROUND_TO) * ROUND_TO
