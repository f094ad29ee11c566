"""Rows of the shards to the arrays of many micro-batches at once.

Tokens, slots and targets of a sample are consecutive numbers, so each is one slice that is filled, without an
array of indices. What is supervised comes from the rows' spans alone, what is an image slot from the
placeholder token, which no text can spell; nothing is derived from pad ids.
"""

# Shapes: M micro-batches, N samples of one; R rows of all, K their tokens, L their spans; those of a `Batch`.

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

import numpy as np

from janus.common.errors import UserError
from janus.prompts import image_index, unconditional
from janus.tokens import IGNORE, SpecialTokens
from shards.schema import RowBlock
from trainer.stream.shapes import Batch, BatchShape, pack


def collate(
    task: str,
    rows: RowBlock,
    counts: Sequence[int],
    shape: BatchShape,
    special: SpecialTokens,
    held_out: bool = False,
) -> list[Batch]:
    """The micro-batches. counts: how many of the rows each takes, at most `shape.samples`.

    held_out: nothing is trained on them, so they may be of the test split. Raises UserError naming a sample
    that its task cannot be trained on, ValueError if a micro-batch does not fit the shape.
    """
    check_rows(task, rows, shape, special, held_out)
    counts_M = np.array(counts)
    layout = _Layout(rows, counts_M, shape)
    arrays = _token_arrays(rows, layout, shape, special)
    arrays |= _state_arrays(task, rows, layout, shape)
    pixels = _pixels(rows, counts, shape) if task == "vqa" else [None] * len(counts)
    codes = _codes(rows, counts_M, shape) if task == "t2i" else [None] * len(counts)
    sizes = counts, layout.tokens_M.tolist(), layout.states_M.tolist()
    return [Batch(*own) for own in zip(*arrays.values(), pixels, codes, *sizes, strict=True)]


def without_prompts(rows: RowBlock, indices: Sequence[int], special: SpecialTokens) -> RowBlock:
    """The t2i rows, the prompts of `indices` nulled exactly as the sampler nulls them."""
    ids_K, ends = rows.ids_K.copy(), np.cumsum(rows.lengths_R).tolist()
    for i in indices:
        own = slice(ends[i] - int(rows.lengths_R[i]), ends[i])
        ids_K[own] = unconditional(ids_K[own], special)
    return replace(rows, ids_K=ids_K)


def check_rows(
    task: str, rows: RowBlock, shape: BatchShape, special: SpecialTokens, held_out: bool = False
) -> None:
    """Raise UserError naming the first row that the task's graph cannot take; the one rule on that."""
    for unfit_R, says in _faults(task, rows, shape, special, held_out):
        if unfit_R.any():
            i = int(unfit_R.argmax())
            raise UserError(f"sample {rows.sample_ids[i]}: {says(i)}; build the shards again for this model")


def _faults(
    task: str, rows: RowBlock, shape: BatchShape, special: SpecialTokens, held_out: bool
) -> Iterator[tuple[np.ndarray, Callable[[int], str]]]:
    """The rows each rule refuses, bool (R,), and what it says of one; it may rely on the rules before it."""
    yield np.array(rows.tasks) != task, lambda i: f"is of task {rows.tasks[i]}, not {task}"
    if not held_out:
        yield np.array(rows.splits) == "test", lambda i: "is marked test, which is never trained on"
    row_L = np.repeat(np.arange(len(rows)), rows.spans_R)
    unfit_R = rows.spans_R == 0
    unfit_R[row_L[rows.starts_L >= rows.ends_L]] = True
    yield unfit_R, lambda i: "has no supervised tokens"
    unfit_R = np.zeros(len(rows), bool)
    unfit_R[row_L[(rows.starts_L < 1) | (rows.ends_L > rows.lengths_R[row_L])]] = True
    yield unfit_R, lambda i: f"has supervised spans outside its {rows.lengths_R[i]} tokens"
    # No row is empty, as its spans are not.
    is_image_K, firsts_R = rows.ids_K == special.image_placeholder, _firsts(rows.lengths_R)
    found_R = np.add.reduceat(is_image_K, firsts_R, dtype=np.int32)
    tokens, size, codes = shape.image.tokens, shape.image.size, shape.image.codes
    wanted = 0 if task == "text" else tokens
    yield found_R != wanted, lambda i: f"has {found_R[i]} image placeholders, the model takes {wanted}"
    if task == "vqa":
        pixels_R = np.array([-1 if image is None else image.size for image in rows.images])
        yield pixels_R < 0, lambda i: "has no image"
        unfit_R = pixels_R != 3 * size**2
        yield unfit_R, lambda i: f"has an image of {isqrt(pixels_R[i] // 3)} pixels, the model takes {size}"
    if task == "t2i":
        codes_R, missing = rows.codes_R, "(`pipelines` fills them in with the model's VQ encoder)"
        yield codes_R < 0, lambda i: f"has no image tokens {missing}"
        yield codes_R != tokens, lambda i: f"has {codes_R[i]} image tokens, the model takes {tokens}"
        high_R = rows.codes.reshape(-1, tokens).max(1)
        yield high_R >= codes, lambda i: f"has image token {high_R[i]}, the model has {codes} codes"
        targets_R = np.add.reduceat(rows.ends_L - rows.starts_L, _firsts(rows.spans_R))
        unfit_R = targets_R != tokens
        yield unfit_R, lambda i: f"supervises {targets_R[i]} positions, its image has {tokens} tokens"


def _firsts(counts: np.ndarray) -> np.ndarray:
    """Where each part starts among all, joined."""
    return np.cumsum(counts) - counts


class _Layout:
    """Where rows are placed in their micro-batches; ValueError if one does not fit the shape.

    lengths_MN, starts_MN, slots_MN: tokens of each sample, place and slot of its first; absent samples have
    none. micro_batch_L, first_L: the micro-batch of each span and the place of its sample's first token.
    """

    def __init__(self, rows: RowBlock, counts_M: np.ndarray, shape: BatchShape) -> None:
        # As wide as the shape, so that packing a micro-batch does not depend on its neighbours.
        used_MN = np.arange(max(shape.samples, counts_M.max())) < counts_M[:, None]
        lengths_MN = self.lengths_MN = np.zeros(used_MN.shape, np.int64)
        lengths_MN[used_MN] = rows.lengths_R
        self.starts_MN = np.cumsum(lengths_MN, 1) - lengths_MN
        rows_MN, slots_MN = pack(lengths_MN, shape.attention_rows)
        self.slots_MN = rows_MN * shape.length + slots_MN
        self.micro_batch_L = np.repeat(np.repeat(np.arange(len(counts_M)), counts_M), rows.spans_R)
        self.first_L = np.repeat(self.starts_MN[used_MN], rows.spans_R)
        states_M = np.bincount(self.micro_batch_L, rows.ends_L - rows.starts_L, len(counts_M))
        self.tokens_M, self.states_M = lengths_MN.sum(1), states_M.astype(np.int64)
        # The last token and each row's last slot stay empty.
        limits = shape.samples, shape.tokens - 1, shape.length - 1, shape.states
        sizes = counts_M, self.tokens_M, slots_MN + lengths_MN, self.states_M
        if any(size.max() > limit for size, limit in zip(sizes, limits, strict=True)):
            raise ValueError(f"samples from {rows.sample_ids[0]} to {rows.sample_ids[-1]} do not fit {shape}")


def _token_arrays(
    rows: RowBlock, layout: _Layout, shape: BatchShape, special: SpecialTokens
) -> dict[str, np.ndarray]:
    """The arrays that place tokens; empty slots show the last token, padding tokens the last slot."""
    count, slots = len(layout.tokens_M), shape.attention_rows * shape.length
    flat_P, slot_S = _numbers(shape.tokens), _numbers(slots)
    number_S = np.repeat(np.arange(1, shape.samples + 1, dtype=np.int32), shape.length).data
    ids_MP = np.full((count, shape.tokens), special.pad, np.int32)
    position_MP, slot_of_MP = np.zeros_like(ids_MP), np.full_like(ids_MP, slots - 1)
    token_of_MS = np.full((count, slots), shape.tokens - 1, np.int32)
    segment_MS = np.zeros_like(token_of_MS)
    seen = 0  # of all tokens; a micro-batch ends where its last sample does
    samples = np.stack([layout.lengths_MN, layout.starts_MN, layout.slots_MN], 2).tolist()
    for m, own in enumerate(samples):
        position_P, slot_of_P = position_MP[m].data, slot_of_MP[m].data
        token_of_S, segment_S = token_of_MS[m].data, segment_MS[m].data
        for number, (length, first, slot) in enumerate(own):
            end, last, numbered = first + length, slot + length, number * shape.length
            position_P[first:end] = flat_P[:length]
            slot_of_P[first:end] = slot_S[slot:last]
            token_of_S[slot:last] = flat_P[first:end]
            segment_S[slot:last] = number_S[numbered : numbered + length]
        ids_MP[m, :end] = rows.ids_K[seen : seen + end]
        seen += end
    return {
        "input_ids_P": ids_MP,
        "position_ids_P": position_MP,
        "image_index_P": image_index(ids_MP, special.image_placeholder),
        "token_of_BS": token_of_MS.reshape(count, shape.attention_rows, -1),
        "slot_of_P": slot_of_MP,
        "segment_ids_BS": segment_MS.reshape(count, shape.attention_rows, -1),
    }


def _numbers(count: int) -> memoryview:
    """0, 1, 2, …, int32; a slice of a memoryview is copied in half the time of one of an array."""
    return np.arange(count, dtype=np.int32).data


def _state_arrays(task: str, rows: RowBlock, layout: _Layout, shape: BatchShape) -> dict[str, np.ndarray]:
    """Tokens whose states predict, and what: the state one position before predicts the target."""
    count = len(layout.states_M)
    state_rows = np.zeros(count * shape.states, np.int32)
    labels = np.full_like(state_rows, IGNORE)
    states_L = rows.ends_L - rows.starts_L
    before_L = _firsts(states_L)
    if task == "t2i":  # its spans hold all codes, one after the other
        targets, target_L = rows.codes, before_L
    else:
        targets, target_L = rows.ids_K, np.repeat(_firsts(rows.lengths_R), rows.spans_R) + rows.starts_L
    empty_M = np.arange(count) * shape.states - _firsts(layout.states_M)
    place_L = before_L + empty_M[layout.micro_batch_L]
    token_L = layout.first_L + rows.starts_L - 1
    flat_P, from_targets = _numbers(shape.tokens), targets.astype(np.int32, copy=False).data
    to_rows, to_labels = state_rows.data, labels.data
    for length, place, token, target in np.stack([states_L, place_L, token_L, target_L], 1).tolist():
        to_rows[place : place + length] = flat_P[token : token + length]
        to_labels[place : place + length] = from_targets[target : target + length]
    return {"state_rows_N": state_rows.reshape(count, -1), "labels_N": labels.reshape(count, -1)}


def _pixels(rows: RowBlock, counts: Sequence[int], shape: BatchShape) -> list[np.ndarray]:
    """The images of each micro-batch; only places without one are zeroed."""
    images: Iterator[Any] = iter(rows.images)  # `check_rows` has refused None
    arrays = []
    for count in counts:
        pixels_IHWC = np.empty((shape.images, shape.image.size, shape.image.size, 3), np.uint8)
        for place in pixels_IHWC[:count]:
            place.reshape(-1)[:] = next(images).reshape(-1)
        pixels_IHWC[count:] = 0
        arrays.append(pixels_IHWC)
    return arrays


def _codes(rows: RowBlock, counts_M: np.ndarray, shape: BatchShape) -> np.ndarray:
    """(M, I, T) image tokens."""
    codes_MIT = np.zeros((len(counts_M), shape.images, shape.image.tokens), np.int32)
    codes_MIT[np.arange(shape.images) < counts_M[:, None]] = rows.codes.reshape(-1, shape.image.tokens)
    return codes_MIT
