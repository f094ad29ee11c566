"""What one compiled graph takes: the arrays of a micro-batch, all of static shape.

Samples follow each other on a flat axis of tokens, positions restarting; for attention they share rows of
slots, separated by segment ids. Attention costs rows × length², so short samples share a row.
"""

# Shapes: M micro-batches, N samples of one. Of a `Batch`: P flat tokens, B attention rows of S slots, N
# states that predict, I images, T tokens of an image, H W C pixels.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from janus import device
from janus.prompts import Signature

if TYPE_CHECKING:
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

    samples: at most, in a micro-batch. attention_rows, length: rows of attention slots, and slots of a row; 0
    where attention takes segment ends. tokens: of the flat axis. states: that predict text, one for each
    target. understood, drawn: pictures, at most.
    """

    samples: int
    attention_rows: int
    length: int
    tokens: int
    states: int
    understood: int
    drawn: int
    image: ImageShape

    @property
    def signature(self) -> Signature:
        """What the task's graph reads and predicts."""
        return Signature(understood=self.understood > 0, drawn=self.drawn > 0, text=self.states > 0)

    @property
    def codes(self) -> int:
        """Image tokens of all drawn pictures, each a target."""
        return self.drawn * self.image.tokens

    @property
    def sizes(self) -> dict[str, int]:
        """What depends on the run's samples. A resumed run keeps it: other padding changes how sums round."""
        return {name: getattr(self, name) for name in _SIZES}


_SIZES = ("attention_rows", "length", "tokens", "states", "understood", "drawn")


@dataclass(frozen=True)
class Counts:
    """Sizes of the samples of some micro-batches, int64 (M, N) each, 0 where there is no sample.

    tokens; targets: of text; understood, drawn: pictures.
    """

    tokens: np.ndarray
    targets: np.ndarray
    understood: np.ndarray
    drawn: np.ndarray

    @classmethod
    def of(
        cls,
        tokens: np.ndarray,
        supervised: np.ndarray,
        codes: np.ndarray,
        understood: np.ndarray,
        image: ImageShape,
    ) -> Self:
        """From tokens, all targets, those of images, and understood pictures of each sample."""
        return cls(tokens, supervised - codes, understood, codes // image.tokens)

    def each(self, function: Callable[[np.ndarray], np.ndarray]) -> Self:
        """The function's result for each of them."""
        return replace(self, **{f.name: function(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The micro-batches of all parts."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one task; see docs/DESIGN.md for the arrays.

    Attention takes slots (`token_of_BS`, `slot_of_P`, `segment_ids_BS`) or else `segment_ends`: an absent
    sample is a segment of one padding token, all other padding is the last segment. Also missing are states
    and labels of targets that the task does not have, and what belongs to pictures.
    samples, tokens, supervised: how many real ones it holds.
    """

    input_ids_P: np.ndarray
    position_ids_P: np.ndarray
    segment_ends_N: np.ndarray
    token_of_BS: np.ndarray | None
    slot_of_P: np.ndarray | None
    segment_ids_BS: np.ndarray | None
    labels_N: np.ndarray | None
    state_rows_N: np.ndarray | None
    image_labels_N: np.ndarray | None
    image_rows_N: np.ndarray | None
    image_index_P: np.ndarray | None
    pixels_IHWC: np.ndarray | None
    image_tokens_IT: np.ndarray | None
    samples: int
    tokens: int
    supervised: int

    @property
    def inputs(self) -> list[np.ndarray]:
        """The arrays in the order its task's loss takes them."""
        arrays = [self.labels_N, self.state_rows_N, self.image_labels_N, self.image_rows_N]
        arrays += [self.input_ids_P, self.position_ids_P]
        slots = [self.token_of_BS, self.slot_of_P, self.segment_ids_BS]
        arrays += [self.segment_ends_N] if self.slot_of_P is None else slots
        arrays += [self.image_index_P, self.pixels_IHWC, self.image_tokens_IT]
        return [array for array in arrays if array is not None]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return np.diff(self.segment_ends_N[: self.samples], prepend=0).tolist()

    @cached_property
    def tensors(self) -> list[Any]:
        """The inputs on the device, sent there by whoever asks first."""
        return [device.upload(array) for array in self.inputs]


def shape_for(
    counts: Counts,
    image: ImageShape,
    *,
    slots: bool = True,
    typical: int | None = None,
    saved: Mapping[str, int] | None = None,
) -> BatchShape:
    """The smallest shape that holds each of these micro-batches.

    slots: whether attention takes slots. typical: number of first micro-batches that decide the attention
    rows. saved: sizes of an earlier shape, kept where they are large enough. A token for each absent sample,
    one more, and a slot of each row stay empty, so that padding has a place to point at.
    """
    tokens_MN, least = counts.tokens, saved or {}
    rows = (least.get("attention_rows") or cheapest_rows(tokens_MN[:typical])) if slots else 0
    sizes = {
        "length": round_up(fullest_row(tokens_MN, rows) + 1) if slots else 0,
        "tokens": round_up(int(np.maximum(tokens_MN, 1).sum(1).max()) + 1),
        "states": round_up(int(counts.targets.sum(1).max())),
        "understood": int(counts.understood.sum(1).max()),
        "drawn": int(counts.drawn.sum(1).max()),
    }
    sizes = {name: max(size, least.get(name, 0)) for name, size in sizes.items()}
    return BatchShape(samples=tokens_MN.shape[1], attention_rows=rows, image=image, **sizes)


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
