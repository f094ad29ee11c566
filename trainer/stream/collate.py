"""Rows of the shards to the arrays of many calls at once: numpy works on all calls of a block together.

Tokens, slots and targets of a sample are runs of consecutive numbers, so each is one slice that is filled: no
array of indices is made and none is followed.

What is supervised comes from the rows' spans alone, what is an image slot from the placeholder token, which
no text can spell; nothing is derived from pad ids.
"""

# Shapes: C calls, B samples of a call, P flat tokens, A rows of S attention slots (BS in a `Batch`), N states
# that predict, I images, T tokens of an image, H W C pixels; R rows of all calls together, K their tokens,
# L their spans.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from janus.prompts import unconditional
from janus.tokens import IGNORE, SpecialTokens
from shards.block import RowBlock
from trainer.stream.batch import Batch, BatchShape
from trainer.stream.fit import check_row, name_of
from trainer.stream.pack import pack


def collate(
    task: str,
    rows: RowBlock,
    counts: Sequence[int],
    shape: BatchShape,
    special: SpecialTokens,
    held_out: bool = False,
) -> list[Batch]:
    """One micro-batch for each call. counts: how many of the rows each takes, at most `shape.samples`.

    held_out: nothing is trained on them, so they may be of the test split.
    Raises UserError naming a sample that its task cannot be trained on, ValueError if a call does not fit the
    shape.
    """
    numbers, counts_C = _Numbers.of(rows), np.array(counts)
    if _any_unfit(task, rows, numbers, shape, special, held_out):
        for i in range(len(rows)):
            check_row(task, rows.row(i), shape, special, held_out)
    layout = _Layout.of(numbers, counts_C, shape)
    _check_fit(rows, layout, shape)
    arrays = _token_arrays(task, numbers, layout, shape, special)
    arrays |= _state_arrays(task, numbers, layout, shape)
    images = _pixels(rows, counts, shape) if task == "vqa" else [None] * len(counts)
    codes = _codes(numbers, counts_C, shape) if task == "t2i" else [None] * len(counts)
    sizes = counts, layout.tokens_C.tolist(), layout.states_C.tolist()
    return [Batch(*own) for own in zip(*arrays.values(), images, codes, *sizes, strict=True)]


def without_prompts(rows: RowBlock, places: Sequence[int], special: SpecialTokens) -> RowBlock:
    """The t2i rows, some with their prompts nulled exactly as the sampler nulls them for guidance."""
    ids = rows.column("input_ids")
    nulled = {i: unconditional(np.frombuffer(ids[i], np.int32), special).tobytes() for i in places}
    return rows.replaced("input_ids", nulled)


@dataclass(frozen=True)
class _Numbers:
    """The numbers that R rows hold, one row's behind the other's. spans_R: spans of each row."""

    lengths_R: np.ndarray
    spans_R: np.ndarray
    ids_K: np.ndarray
    starts_L: np.ndarray
    ends_L: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, rows: RowBlock) -> _Numbers:
        return cls(
            lengths_R=rows.lengths("input_ids") // 4,
            spans_R=rows.lengths("span_starts") // 4,
            ids_K=rows.numbers("input_ids", np.int32),
            starts_L=rows.numbers("span_starts", np.int32),
            ends_L=rows.numbers("span_ends", np.int32),
            codes=rows.numbers("image_tokens", np.uint16),
        )


@dataclass(frozen=True)
class _Layout:
    """Where rows stand in their calls.

    lengths_CB, starts_CB: tokens of each row and the flat place of its first; absent rows have none.
    slots_CB: the attention slot of each sample's first token. fullest: slots that the fullest row holds.
    calls_L, spans_first_L: the call of a span, and the flat place, counted within it, of the span's row.
    """

    lengths_CB: np.ndarray
    starts_CB: np.ndarray
    slots_CB: np.ndarray
    fullest: int
    tokens_C: np.ndarray
    states_C: np.ndarray
    calls_L: np.ndarray
    spans_first_L: np.ndarray

    @classmethod
    def of(cls, numbers: _Numbers, counts_C: np.ndarray, shape: BatchShape) -> _Layout:
        # As wide as the fullest call: so the rows a call is packed into do not depend on its neighbours.
        used_CB = np.arange(max(shape.samples, counts_C.max())) < counts_C[:, None]
        lengths_CB = np.zeros(used_CB.shape, np.int64)
        lengths_CB[used_CB] = numbers.lengths_R
        starts_CB = np.cumsum(lengths_CB, 1) - lengths_CB
        calls_L = np.repeat(np.repeat(np.arange(len(counts_C)), counts_C), numbers.spans_R)
        states_C = np.bincount(calls_L, numbers.ends_L - numbers.starts_L, len(counts_C)).astype(np.int64)
        rows_CB, first_CB = pack(lengths_CB, shape.rows)
        return cls(
            lengths_CB=lengths_CB,
            starts_CB=starts_CB,
            slots_CB=rows_CB * shape.length + first_CB,
            fullest=int((first_CB + lengths_CB).max()),
            tokens_C=lengths_CB.sum(1),
            states_C=states_C,
            calls_L=calls_L,
            spans_first_L=np.repeat(starts_CB[used_CB], numbers.spans_R),
        )

    def samples(self) -> list[list[list[int]]]:
        """Of each sample of each call: its tokens, the first one's place and slot. Absent ones have none."""
        return np.stack([self.lengths_CB, self.starts_CB, self.slots_CB], 2).tolist()


def _token_arrays(
    task: str, numbers: _Numbers, layout: _Layout, shape: BatchShape, special: SpecialTokens
) -> dict[str, np.ndarray]:
    """The arrays that place tokens; empty slots show the last token, padding tokens the last slot."""
    calls, slots = len(layout.tokens_C), shape.rows * shape.length
    flat_P, slot_S = np.arange(shape.tokens, dtype=np.int32), np.arange(slots, dtype=np.int32)
    ids_CP = np.full((calls, shape.tokens), special.pad, np.int32)
    position_CP, slot_of_CP = np.zeros_like(ids_CP), np.full_like(ids_CP, slots - 1)
    token_of_CS = np.full((calls, slots), shape.tokens - 1, np.int32)
    segment_CS = np.zeros_like(token_of_CS)
    seen = 0  # of all tokens; a call ends where its last sample does
    arrays = zip(ids_CP, position_CP, slot_of_CP, token_of_CS, segment_CS, strict=True)
    for (ids_P, position_P, slot_of_P, token_of_S, segment_S), samples in zip(
        arrays, layout.samples(), strict=True
    ):
        for number, (length, first, slot) in enumerate(samples, 1):
            end, last = first + length, slot + length
            position_P[first:end] = flat_P[:length]
            slot_of_P[first:end] = slot_S[slot:last]
            token_of_S[slot:last] = flat_P[first:end]
            segment_S[slot:last] = number
        ids_P[:end] = numbers.ids_K[seen : seen + end]
        seen += end
    return {
        "input_ids_P": ids_CP,
        "position_ids_P": position_CP,
        "image_index_P": np.zeros_like(ids_CP) if task == "text" else _image_index(ids_CP, special),
        "token_of_BS": token_of_CS.reshape(calls, shape.rows, -1),
        "slot_of_P": slot_of_CP,
        "segment_ids_BS": segment_CS.reshape(calls, shape.rows, -1),
    }


def _image_index(ids_CP: np.ndarray, special: SpecialTokens) -> np.ndarray:
    """1 + index into the call's flattened (image, slot) table where a placeholder stands, else 0."""
    slots_CP = ids_CP == special.image_placeholder
    index_CP = np.cumsum(slots_CP, 1, dtype=np.int32)
    index_CP *= slots_CP
    return index_CP


def _state_arrays(task: str, numbers: _Numbers, layout: _Layout, shape: BatchShape) -> dict[str, np.ndarray]:
    """Tokens whose states predict, and what: the state one position before predicts the target."""
    calls = len(layout.states_C)
    state_rows = np.zeros(calls * shape.states, np.int32)
    labels = np.full_like(state_rows, IGNORE)
    states_L = numbers.ends_L - numbers.starts_L
    before_L = np.cumsum(states_L) - states_L
    if task == "t2i":  # its spans hold all codes, one after the other
        targets, first_L = numbers.codes, before_L
    else:
        before_R = np.cumsum(numbers.lengths_R) - numbers.lengths_R
        targets, first_L = numbers.ids_K, np.repeat(before_R, numbers.spans_R) + numbers.starts_L
    before_C = np.cumsum(layout.states_C) - layout.states_C
    place_L = before_L + (np.arange(calls) * shape.states - before_C)[layout.calls_L]
    token_L = layout.spans_first_L + numbers.starts_L - 1
    flat_P = np.arange(shape.tokens, dtype=np.int32)
    spans = np.stack([states_L, place_L, token_L, first_L], 1)
    for count, place, token, first in spans.tolist():
        state_rows[place : place + count] = flat_P[token : token + count]
        labels[place : place + count] = targets[first : first + count]
    return {"state_rows_N": state_rows.reshape(calls, -1), "labels_N": labels.reshape(calls, -1)}


def _pixels(rows: RowBlock, counts: Sequence[int], shape: BatchShape) -> list[np.ndarray]:
    """The images of each call; only places without one are zeroed."""
    side, images = shape.image.size, iter(rows.column("image"))
    arrays = []
    for count in counts:
        pixels_IHWC = np.empty((shape.images, side, side, 3), np.uint8)
        for place in pixels_IHWC[:count]:
            place.reshape(-1)[:] = np.frombuffer(next(images), np.uint8)
        pixels_IHWC[count:] = 0
        arrays.append(pixels_IHWC)
    return arrays


def _codes(numbers: _Numbers, counts_C: np.ndarray, shape: BatchShape) -> np.ndarray:
    """(C, I, T) image tokens."""
    codes_CIT = np.zeros((len(counts_C), shape.images, shape.image.tokens), np.int32)
    codes_CIT[np.arange(shape.images) < counts_C[:, None]] = numbers.codes.reshape(-1, shape.image.tokens)
    return codes_CIT


def _check_fit(rows: RowBlock, layout: _Layout, shape: BatchShape) -> None:
    """Raise ValueError if a call does not fit: its last token and its rows' last slots have to stay empty."""
    if (
        layout.lengths_CB.shape[1] > shape.samples
        or layout.tokens_C.max() >= shape.tokens
        or layout.fullest >= shape.length
        or layout.states_C.max() > shape.states
    ):
        first, last = (name_of(rows.row(i)) for i in (0, len(rows) - 1))
        raise ValueError(f"samples from {first} to {last} do not fit {shape}")


def _any_unfit(
    task: str, rows: RowBlock, numbers: _Numbers, shape: BatchShape, special: SpecialTokens, held_out: bool
) -> bool:
    """Whether `check_row` has to look at the rows one by one: it refuses none where this is False."""
    spans_R, starts_L, ends_L = numbers.spans_R, numbers.starts_L, numbers.ends_L
    if b"".join(rows.column("task")) != task.encode() * len(rows):
        return True
    if not held_out and (rows.lengths("split") == len("test")).any():
        return True
    if not spans_R.all() or starts_L.min() < 1 or (starts_L >= ends_L).any():
        return True
    if (ends_L > np.repeat(numbers.lengths_R, spans_R)).any():
        return True
    bounds = np.append(0, np.cumsum(numbers.lengths_R))
    places = np.flatnonzero(numbers.ids_K == special.image_placeholder)
    if (np.diff(np.searchsorted(places, bounds)) != (0 if task == "text" else shape.image.tokens)).any():
        return True
    if task == "vqa":
        return bool((rows.lengths("image") != 3 * shape.image.size**2).any())
    return task == "t2i" and _any_codes_unfit(rows, numbers, shape)


def _any_codes_unfit(rows: RowBlock, numbers: _Numbers, shape: BatchShape) -> bool:
    if (rows.lengths("image_tokens") != 2 * shape.image.tokens).any():
        return True
    firsts = np.cumsum(numbers.spans_R) - numbers.spans_R
    supervised_R = np.add.reduceat(numbers.ends_L - numbers.starts_L, firsts)
    return bool((supervised_R != shape.image.tokens).any() or numbers.codes.max() >= shape.image.codes)
