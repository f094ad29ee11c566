"""Rows of the shards to the arrays of many micro-batches at once.

Tokens, slots and targets of a sample are consecutive numbers, so each is one slice that is filled, without an
array of indices. What is supervised comes from the rows' spans alone, what is an image slot from the
placeholder token, which no text can spell; nothing is derived from pad ids.
"""

# Shapes: M micro-batches, N samples of one; R rows of all, K their tokens, L their spans; those of a `Batch`.

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from janus.common.errors import UserError
from janus.prompts import IMAGE, SIGNATURES, TEXT, image_index, unconditional
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
    layout, nothing = _Layout(rows, counts_M, shape), [None] * len(counts)
    arrays: dict[str, Any] = _token_arrays(rows, layout, shape, special)
    slots = ("token_of_BS", "slot_of_P", "segment_ids_BS")
    arrays |= _slot_arrays(layout, shape) if shape.attention_rows else dict.fromkeys(slots, nothing)
    arrays["labels_N"], arrays["state_rows_N"] = (
        _states(rows, layout, shape, TEXT) if shape.states else (nothing, nothing)
    )
    arrays["image_labels_N"], arrays["image_rows_N"] = (
        _states(rows, layout, shape, IMAGE) if shape.drawn else (nothing, nothing)
    )
    ids_MP = arrays["input_ids_P"]
    pictures = shape.understood or shape.drawn
    arrays["image_index_P"] = _image_index(ids_MP, rows, layout, shape, special) if pictures else nothing
    arrays["pixels_IHWC"] = _pixels(rows, layout, shape) if shape.understood else nothing
    arrays["image_tokens_IT"] = _codes(rows, layout, shape) if shape.drawn else nothing
    sizes = counts, layout.tokens_M.tolist(), layout.supervised_M.tolist()
    return [Batch(*own) for own in zip(*arrays.values(), *sizes, strict=True)]


def without_prompts(rows: RowBlock, indices: Sequence[int], special: SpecialTokens) -> RowBlock:
    """The rows, the prompts of `indices` nulled exactly as the sampler nulls them."""
    ids_K, ends, span_ends = rows.ids_K.copy(), np.cumsum(rows.lengths_R), np.cumsum(rows.spans_R)
    spans = np.stack([rows.starts_L, rows.ends_L, rows.kinds_L], 1)
    for i in indices:
        own = slice(ends[i] - rows.lengths_R[i], ends[i])
        supervised = spans[span_ends[i] - rows.spans_R[i] : span_ends[i]]
        ids_K[own] = unconditional(ids_K[own], special, supervised)
    return replace(rows, ids_K=ids_K)


def check_rows(
    task: str, rows: RowBlock, shape: BatchShape, special: SpecialTokens, held_out: bool = False
) -> None:
    """Raise UserError naming the first row that the task's graph cannot take; the one rule on that."""
    for unfit_R, says in _faults(task, rows, shape, special, held_out):
        if unfit_R.any():
            i = int(unfit_R.argmax())
            raise UserError(f"sample {rows.sample_ids[i]}: {says(i)}; build the shards again for this model")


Fault = tuple[np.ndarray, Callable[[int], str]]
"""The rows that a rule refuses, bool (R,), and what it says of one."""


def _faults(
    task: str, rows: RowBlock, shape: BatchShape, special: SpecialTokens, held_out: bool
) -> Iterator[Fault]:
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
    tokens = shape.image.tokens
    if SIGNATURES[task].understood and task != "interleaved":
        yield rows.images_R == 0, lambda i: "has no image"
    if SIGNATURES[task].drawn:
        yield (
            rows.codes_R == 0,
            lambda i: "has no image tokens (`pipelines` fills them in with the model's VQ encoder)",
        )
    says = "has {} image tokens, the model takes {} a picture"
    yield rows.codes_R % tokens != 0, lambda i: says.format(rows.codes_R[i], tokens)
    # No row is empty, as its spans are not.
    found_R = np.add.reduceat(
        rows.ids_K == special.image_placeholder, _firsts(rows.lengths_R), dtype=np.int32
    )
    wanted_R = tokens * rows.images_R + rows.codes_R
    says_found = "has {} image placeholders, the model takes {}"
    yield found_R != wanted_R, lambda i: says_found.format(found_R[i], wanted_R[i])
    lengths_L = np.where(rows.kinds_L == IMAGE, rows.ends_L - rows.starts_L, 0)
    targets_R = np.add.reduceat(lengths_L, _firsts(rows.spans_R))
    says_targets = "supervises {} image positions, its pictures have {} tokens"
    yield targets_R != rows.codes_R, lambda i: says_targets.format(targets_R[i], rows.codes_R[i])
    if len(rows.images):
        yield from _size_faults(rows, shape.image.size)
    if len(rows.codes):
        yield from _code_faults(rows, shape.image.codes)


def _size_faults(rows: RowBlock, size: int) -> Iterator[Fault]:
    row_I = np.repeat(np.arange(len(rows)), rows.images_R)
    sides_I = np.array([image.shape[0] for image in rows.images])
    unfit_R = np.zeros(len(rows), bool)
    unfit_R[row_I[sides_I != size]] = True
    yield unfit_R, lambda i: f"has an image of {sides_I[row_I == i].max()} pixels, the model takes {size}"


def _code_faults(rows: RowBlock, codes: int) -> Iterator[Fault]:
    row_C = np.repeat(np.arange(len(rows)), rows.codes_R)
    unfit_R = np.zeros(len(rows), bool)
    unfit_R[row_C[rows.codes >= codes]] = True
    yield unfit_R, lambda i: f"has image token {rows.codes[row_C == i].max()}, the model has {codes} codes"


def _firsts(counts: np.ndarray) -> np.ndarray:
    """Where each part starts among all, joined."""
    return np.cumsum(counts) - counts


class _Layout:
    """Where rows are placed in their micro-batches; ValueError if one does not fit the shape.

    lengths_MN, starts_MN, slots_MN: tokens of each sample, place and slot of its first; absent samples have
    none. ends_MN: where its segment ends. micro_batch_L, first_L: the micro-batch of each span and the place
    of its sample's first token.
    states_M: targets of text. understood_M, drawn_M: pictures.
    """

    def __init__(self, rows: RowBlock, counts_M: np.ndarray, shape: BatchShape) -> None:
        # As wide as the shape, so that packing a micro-batch does not depend on its neighbours.
        used_MN = np.arange(max(shape.samples, counts_M.max())) < counts_M[:, None]
        lengths_MN = self.lengths_MN = np.zeros(used_MN.shape, np.int64)
        lengths_MN[used_MN] = rows.lengths_R
        self.starts_MN = np.cumsum(lengths_MN, 1) - lengths_MN
        self.ends_MN = np.cumsum(np.maximum(lengths_MN, 1), 1)
        slots_MN = np.zeros_like(lengths_MN)
        if shape.attention_rows:
            rows_MN, slots_MN = pack(lengths_MN, shape.attention_rows)
            self.slots_MN = rows_MN * shape.length + slots_MN
        micro_batch_R = np.repeat(np.arange(len(counts_M)), counts_M)
        self.micro_batch_L = np.repeat(micro_batch_R, rows.spans_R)
        self.first_L = np.repeat(self.starts_MN[used_MN], rows.spans_R)
        self.tokens_M, supervised_L = lengths_MN.sum(1), rows.ends_L - rows.starts_L
        self.supervised_M = np.bincount(self.micro_batch_L, supervised_L, len(counts_M)).astype(np.int64)
        codes_M = np.bincount(micro_batch_R, rows.codes_R, len(counts_M)).astype(np.int64)
        self.understood_M = np.bincount(micro_batch_R, rows.images_R, len(counts_M)).astype(np.int64)
        self.states_M, self.drawn_M = self.supervised_M - codes_M, codes_M // shape.image.tokens
        # The last token and each row's last slot stay empty.
        limits = [shape.samples, shape.tokens - 1, shape.states, shape.understood, shape.drawn]
        sizes = [counts_M, self.ends_MN, self.states_M, self.understood_M, self.drawn_M]
        if shape.attention_rows:
            limits, sizes = [*limits, shape.length - 1], [*sizes, slots_MN + lengths_MN]
        if any(size.max() > limit for size, limit in zip(sizes, limits, strict=True)):
            raise ValueError(f"samples from {rows.sample_ids[0]} to {rows.sample_ids[-1]} do not fit {shape}")


def _token_arrays(
    rows: RowBlock, layout: _Layout, shape: BatchShape, special: SpecialTokens
) -> dict[str, np.ndarray]:
    """The tokens, their positions, and where each sample's segment ends."""
    ids_MP = np.full((len(layout.tokens_M), shape.tokens), special.pad, np.int32)
    position_MP = np.zeros_like(ids_MP)
    positions_K = np.arange(len(rows.ids_K)) - np.repeat(_firsts(rows.lengths_R), rows.lengths_R)
    seen = 0  # of all tokens; a micro-batch ends where its last sample does
    for m, end in enumerate(layout.tokens_M.tolist()):
        ids_MP[m, :end], position_MP[m, :end] = (of[seen : seen + end] for of in (rows.ids_K, positions_K))
        seen += end
    last_M1 = np.full((len(ids_MP), 1), shape.tokens)
    ends_MN = np.concatenate((layout.ends_MN, last_M1), 1)
    return {"input_ids_P": ids_MP, "position_ids_P": position_MP, "segment_ends_N": ends_MN}


def _slot_arrays(layout: _Layout, shape: BatchShape) -> dict[str, np.ndarray]:
    """The arrays that move tokens to slots; empty slots show the last token, padding tokens the last slot."""
    count, slots = len(layout.tokens_M), shape.attention_rows * shape.length
    flat_P, slot_S = _numbers(shape.tokens), _numbers(slots)
    number_S = np.repeat(np.arange(1, shape.samples + 1, dtype=np.int32), shape.length).data
    slot_of_MP = np.full((count, shape.tokens), slots - 1, np.int32)
    token_of_MS = np.full((count, slots), shape.tokens - 1, np.int32)
    segment_MS = np.zeros_like(token_of_MS)
    samples = np.stack([layout.lengths_MN, layout.starts_MN, layout.slots_MN], 2).tolist()
    for m, own in enumerate(samples):
        slot_of_P, token_of_S, segment_S = slot_of_MP[m].data, token_of_MS[m].data, segment_MS[m].data
        for number, (length, first, slot) in enumerate(own):
            end, last, numbered = first + length, slot + length, number * shape.length
            slot_of_P[first:end] = slot_S[slot:last]
            token_of_S[slot:last] = flat_P[first:end]
            segment_S[slot:last] = number_S[numbered : numbered + length]
    return {
        "token_of_BS": token_of_MS.reshape(count, shape.attention_rows, -1),
        "slot_of_P": slot_of_MP,
        "segment_ids_BS": segment_MS.reshape(count, shape.attention_rows, -1),
    }


def _numbers(count: int) -> memoryview:
    """0, 1, 2, …, int32; a slice of a memoryview is copied in half the time of one of an array."""
    return np.arange(count, dtype=np.int32).data


def _states(rows: RowBlock, layout: _Layout, shape: BatchShape, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """What targets of a kind are, and the tokens whose states predict them: those one position before."""
    count = len(layout.states_M)
    states = shape.states if kind == TEXT else shape.codes
    state_rows = np.zeros(count * states, np.int32)
    labels = np.full_like(state_rows, IGNORE)
    own = rows.kinds_L == kind
    starts_L, micro_batch_L = rows.starts_L[own], layout.micro_batch_L[own]
    lengths_L = rows.ends_L[own] - starts_L
    before_L = _firsts(lengths_L)
    if kind == IMAGE:  # its spans hold all codes, one after the other
        targets, target_L = rows.codes, before_L
    else:
        firsts_L = np.repeat(_firsts(rows.lengths_R), rows.spans_R)[own]
        targets, target_L = rows.ids_K, firsts_L + starts_L
    states_M = np.bincount(micro_batch_L, lengths_L, count).astype(np.int64)
    empty_M = np.arange(count) * states - _firsts(states_M)
    place_L = before_L + empty_M[micro_batch_L]
    token_L = layout.first_L[own] + starts_L - 1
    flat_P, from_targets = _numbers(shape.tokens), targets.astype(np.int32, copy=False).data
    to_rows, to_labels = state_rows.data, labels.data
    for length, place, token, target in np.stack([lengths_L, place_L, token_L, target_L], 1).tolist():
        to_rows[place : place + length] = flat_P[token : token + length]
        to_labels[place : place + length] = from_targets[target : target + length]
    return labels.reshape(count, -1), state_rows.reshape(count, -1)


def _image_index(
    ids_MP: np.ndarray, rows: RowBlock, layout: _Layout, shape: BatchShape, special: SpecialTokens
) -> np.ndarray:
    """`image_index` of each micro-batch; drawn tokens are those that are supervised."""
    placeholders_MP = ids_MP == special.image_placeholder
    if not (shape.understood and shape.drawn):
        return image_index(placeholders_MP)
    drawn_MP = np.zeros_like(placeholders_MP)
    spans = np.stack([rows.starts_L, rows.ends_L], 1) + layout.first_L[:, None]
    own = rows.kinds_L == IMAGE
    for m, (start, end) in zip(layout.micro_batch_L[own].tolist(), spans[own].tolist(), strict=True):
        drawn_MP[m, start:end] = True
    shown_MP = placeholders_MP & ~drawn_MP
    return image_index(shown_MP, drawn_MP, shape.understood * shape.image.tokens)


def _pixels(rows: RowBlock, layout: _Layout, shape: BatchShape) -> list[np.ndarray]:
    """The understood pictures of each micro-batch; only places without one are zeroed."""
    side, images = shape.image.size, iter(rows.images)
    arrays = []
    for count in layout.understood_M.tolist():
        pixels_IHWC = np.empty((shape.understood, side, side, 3), np.uint8)
        for place in pixels_IHWC[:count]:
            place[:] = next(images)
        pixels_IHWC[count:] = 0
        arrays.append(pixels_IHWC)
    return arrays


def _codes(rows: RowBlock, layout: _Layout, shape: BatchShape) -> np.ndarray:
    """(M, I, T) image tokens of the drawn pictures."""
    codes_MIT = np.zeros((len(layout.drawn_M), shape.drawn, shape.image.tokens), np.int32)
    codes_MIT[np.arange(shape.drawn) < layout.drawn_M[:, None]] = rows.codes.reshape(-1, shape.image.tokens)
    return codes_MIT
