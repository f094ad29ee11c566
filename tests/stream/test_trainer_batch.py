"""Samples to arrays: what is supervised, what each state sees, and what is refused."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_shards import WORDS, realistic_lengths, shape_of, word_tokenizer

from janus.common.errors import UserError
from janus.prompts import IMAGE as IMAGE_KIND
from janus.prompts import SIGNATURES, TEXT, Message, encode_samples, task_of, unconditional
from janus.tokens import IGNORE
from shards.schema import RowBlock, Sample
from trainer.stream.collate import collate, without_prompts
from trainer.stream.plan import Plan, cut, sample_weights
from trainer.stream.shapes import (
    Batch,
    BatchShape,
    Counts,
    ImageShape,
    cheapest_rows,
    fullest_row,
    pack,
    shape_for,
)

SIDE, TOKENS, CODES = 8, 4, 50
IMAGE = ImageShape(SIDE, TOKENS, CODES)
SPECIAL = word_tokenizer().special


def _sample(
    task: str,
    key: int = 0,
    prompt: str = "w1 w2",
    answer: str = "w3",
    history: tuple = (),
    shown: int = 1,
    drawn: int = 1,
) -> Sample:
    """shown, drawn: pictures of the first question and of the last answer, where the task has them."""
    rng, kinds = np.random.default_rng(key), SIGNATURES[task]
    messages = []
    for asked, said in (*history, (prompt, answer if kinds.text else "")):
        messages += [Message("user", asked), Message("assistant", said)]
    messages[0] = replace(messages[0], pictures=["a"] * shown * kinds.understood)
    messages[-1] = replace(messages[-1], pictures=["b"] * drawn * kinds.drawn)
    assert task_of(messages) == task
    (encoded,) = encode_samples(word_tokenizer(), [messages], TOKENS)
    texts = {"prompt": prompt, "answer": messages[-1].text, "source": "test", "sha256": ""}
    return Sample(
        **{**texts, "split": "train", "source_key": str(key), **vars(encoded)},
        task=task,
        sample_id=f"{task}/{key}",
        messages=tuple(messages),
        images=list(rng.integers(0, 256, (len(messages[0].pictures), SIDE, SIDE, 3), np.uint8)),
        image_tokens=rng.integers(0, CODES, TOKENS * len(messages[-1].pictures)).astype(np.uint16),
    )


def _collate(task: str, samples: list[Sample], shape: BatchShape | None = None) -> Batch:
    (batch,) = collate(task, RowBlock.of(samples), [len(samples)], shape or shape_of(samples, IMAGE), SPECIAL)
    return batch


def _targets(batch: Batch, kind: int = TEXT) -> list[tuple[int, int]]:
    """(state, label) of every target of a kind."""
    pairs = {
        TEXT: (batch.state_rows_N, batch.labels_N),
        IMAGE_KIND: (batch.image_rows_N, batch.image_labels_N),
    }
    states_N, labels_N = pairs[kind]
    used = labels_N != IGNORE
    return list(zip(states_N[used].tolist(), labels_N[used].tolist(), strict=True))


@pytest.mark.parametrize("task", ["t2i", "edit", "interleaved"])
def test_the_first_image_token_is_trained_and_begin_of_image_predicts_it(task: str) -> None:
    sample = _sample(task, shown=2)
    batch = _collate(task, [sample])
    begin = int(np.flatnonzero(sample.input_ids == SPECIAL.begin_of_image)[-1])
    assert _targets(batch, IMAGE_KIND) == list(enumerate(sample.image_tokens.tolist(), begin))
    assert batch.supervised == TOKENS + (len(_targets(batch)) if task == "interleaved" else 0)
    # The state at the slot of token j has seen tokens 0 to j: slot j is embedding j of the image, which
    # stands behind those of the pictures that are shown.
    first = 1 + len(sample.images) * TOKENS
    assert batch.image_index_P[begin + 1 : begin + 1 + TOKENS].tolist() == [*range(first, first + TOKENS)]
    assert (batch.image_index_P > 0).sum() == first - 1 + TOKENS


@pytest.mark.parametrize("task", ["t2i", "edit", "interleaved"])
def test_the_null_prompt_is_the_samplers_and_stays_attended_to(task: str) -> None:
    answered = (("w4", "w5 w6"),) if task == "interleaved" else ()
    sample = _sample(task, prompt="w1 w2 w3", history=answered)
    shape = shape_of([sample], IMAGE)
    nulled = without_prompts(RowBlock.of([sample]), [0], SPECIAL)
    (batch,) = collate(task, nulled, [1], shape, SPECIAL)
    length, ids = len(sample.input_ids), batch.input_ids_P
    np.testing.assert_array_equal(ids[:length], unconditional(sample.input_ids, SPECIAL, sample.supervised))
    # What is left: BOS, the pictures that are shown with their frame, what is supervised, the drawn picture.
    shown = [SPECIAL.begin_of_image, *[SPECIAL.image_placeholder] * TOKENS, SPECIAL.end_of_image]
    drawn = int(np.flatnonzero(sample.input_ids == SPECIAL.begin_of_image)[-1])
    answers = [word_tokenizer().encode_texts([said])[0] for _, said in answered]
    left = [token for token in ids[:drawn].tolist() if token != SPECIAL.pad]
    assert left == [
        SPECIAL.bos,
        *shown * len(sample.images),
        *(t for a in answers for t in (*a, SPECIAL.eos)),
    ]
    np.testing.assert_array_equal(ids[drawn:length], sample.input_ids[drawn:])
    # Pad ids within the sample are positions like any other; only what is empty is not.
    assert batch.segment_ids_BS[0].tolist() == [1] * length + [0] * (shape.length - length)
    for name, array in vars(_collate(task, [sample])).items():
        if name != "input_ids_P":
            np.testing.assert_array_equal(getattr(batch, name), array)


def test_every_answer_of_a_conversation_is_supervised_with_its_eos() -> None:
    history = (("w1 w2", "w3 w4 w5"), ("w6", "w7"))
    sample = _sample("vqa", prompt="w8", answer="w9 w10", history=history)
    states, labels = zip(*_targets(_collate("vqa", [sample])), strict=True)
    eos = word_tokenizer().special.eos
    ends = [place for place, label in enumerate(labels) if label == eos]
    answers = [word_tokenizer().decode([*labels[a + 1 : b]]).split() for a, b in pairwise([-1, *ends])]
    assert answers == [["w3", "w4", "w5"], ["w7"], ["w9", "w10"]]
    assert labels[-1] == eos
    assert [sample.input_ids[state + 1] for state in states] == list(labels)


@st.composite
def _samples(draw: st.DrawFn) -> tuple[str, list[Sample]]:
    task = draw(st.sampled_from([*SIGNATURES]))
    words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
    shown = st.integers(0 if task == "interleaved" else 1, 3)
    texts = st.just(task), st.integers(0, 99), words, words, st.just(())
    return task, draw(st.lists(st.builds(_sample, *texts, shown, st.integers(1, 2)), min_size=1, max_size=8))


def _plainly(samples: list[Sample], shape: BatchShape) -> dict[str, np.ndarray]:
    """The arrays of a micro-batch, token by token, target by target, picture by picture."""
    lengths = np.zeros((1, shape.samples), np.int64)
    lengths[0, : len(samples)] = [len(sample.input_ids) for sample in samples]
    rows_N, slots_N = pack(lengths, shape.attention_rows)
    grid, codes = (shape.attention_rows, shape.length), shape.drawn * TOKENS
    arrays = {"position_ids_P": np.zeros(shape.tokens), "input_ids_P": np.full(shape.tokens, SPECIAL.pad)}
    ends = np.cumsum([len(sample.input_ids) for sample in samples] + [1] * (shape.samples - len(samples)))
    arrays["segment_ends_N"] = np.append(ends, shape.tokens)
    arrays |= {"segment_ids_BS": np.zeros(grid), "token_of_BS": np.full(grid, shape.tokens - 1)}
    arrays |= {"slot_of_P": np.full(shape.tokens, shape.attention_rows * shape.length - 1)}
    if shape.states:
        arrays |= {"labels_N": np.full(shape.states, IGNORE), "state_rows_N": np.zeros(shape.states)}
    if shape.drawn:
        arrays |= {"image_labels_N": np.full(codes, IGNORE), "image_rows_N": np.zeros(codes)}
        arrays["image_tokens_IT"] = np.zeros((shape.drawn, TOKENS))
    if shape.understood:
        arrays["pixels_IHWC"] = np.zeros((shape.understood, SIDE, SIDE, 3))
    if shape.understood or shape.drawn:
        arrays["image_index_P"] = np.zeros(shape.tokens)
    token = shown = drawn = state = 0
    for row, sample in enumerate(samples):
        first, before, kinds, own = token, shown, dict[int, int](), iter(sample.image_tokens.tolist())
        for start, end, kind in sample.supervised.tolist():
            kinds |= dict.fromkeys(range(start, end), kind)
        for position, token_id in enumerate(sample.input_ids.tolist()):
            arrays["input_ids_P"][token], arrays["position_ids_P"][token] = token_id, position
            place = rows_N[0, row], slots_N[0, row] + position
            arrays["token_of_BS"][place], arrays["segment_ids_BS"][place] = token, 1 + row
            arrays["slot_of_P"][token] = place[0] * shape.length + place[1]
            if kinds.get(position) == TEXT:
                arrays["state_rows_N"][state], arrays["labels_N"][state] = first + position - 1, token_id
                state += 1
            elif kinds.get(position) == IMAGE_KIND:
                code = next(own)
                arrays["image_rows_N"][drawn], arrays["image_labels_N"][drawn] = first + position - 1, code
                arrays["image_tokens_IT"][drawn // TOKENS, drawn % TOKENS] = code
                drawn += 1
                arrays["image_index_P"][token] = shape.understood * TOKENS + drawn
            elif token_id == SPECIAL.image_placeholder:
                shown += 1
                arrays["image_index_P"][token] = shown
                if shown % TOKENS == 0:
                    arrays["pixels_IHWC"][shown // TOKENS - 1] = sample.images[(shown - before) // TOKENS - 1]
            token += 1
    return arrays


@settings(max_examples=60, deadline=None)
@given(_samples(), st.integers(1, 8), st.integers(1, 4))
def test_calls_are_those_made_plainly(task_samples: tuple[str, list[Sample]], count: int, rows: int) -> None:
    task, samples = task_samples
    calls = [samples[start : start + count] for start in range(0, len(samples), count)]
    shape = shape_of(samples, IMAGE, rows)
    batches = collate(task, RowBlock.of(samples), list(map(len, calls)), shape, SPECIAL)
    for call, batch in zip(calls, batches, strict=True):
        plain = _plainly(call, shape)
        given_ = {name: array for name, array in vars(batch).items() if isinstance(array, np.ndarray)}
        assert given_.keys() == plain.keys()
        assert len(batch.inputs) == len(plain) - 1  # slots or ends
        for name, array in plain.items():
            np.testing.assert_array_equal(given_[name], array, err_msg=name)
            kinds = {"pixels_IHWC": np.uint8, "segment_ends_N": np.int64}
            assert given_[name].dtype == kinds.get(name, np.int32)
        # As flash attention takes them: no segment is empty, the last ends with the tokens.
        assert np.diff(batch.segment_ends_N, prepend=0).min() > 0
        assert batch.lengths == [len(sample.input_ids) for sample in call]
        # Padding points at the last token and the last slot: neither is real, so it belongs to no sample.
        assert batch.tokens < shape.tokens
        assert batch.segment_ids_BS[-1, -1] == 0
        for kind in (TEXT, IMAGE_KIND):
            if (batch.labels_N if kind == TEXT else batch.image_labels_N) is not None:
                assert all(state < batch.tokens for state, _ in _targets(batch, kind))


def _counts(*sizes: list) -> Counts:
    """tokens, targets of text, understood and drawn pictures; those left out are zero."""
    arrays = [np.array(own) for own in sizes]
    return Counts(*arrays, *[np.zeros_like(arrays[0])] * (4 - len(arrays)))


def test_shapes_are_the_smallest_that_fit_all() -> None:
    tokens, targets = [[65, 60, 50, 25], [30, 30, 20, 0]], [[10, 10, 10, 3], [1, 1, 1, 0]]
    shape = shape_for(_counts(tokens, targets), IMAGE)
    text = {"samples": 4, "attention_rows": 3, "length": 80, "tokens": 208, "states": 48}
    assert shape == BatchShape(**text, understood=0, drawn=0, image=IMAGE)
    assert shape.signature == SIGNATURES["text"]
    # Pictures are as many as the micro-batch with the most has; a picture costs too much to round up.
    shape = shape_for(
        _counts(tokens, targets, [[1, 1, 1, 1], [1, 3, 1, 0]], [[2, 1, 0, 0], [0, 0, 1, 0]]), IMAGE
    )
    assert shape == BatchShape(**text, understood=5, drawn=3, image=IMAGE)
    assert shape.signature == SIGNATURES["interleaved"]
    # One token and one slot of a row stay empty, also where the numbers are round; states need no such place.
    shape = shape_for(_counts([[64]], [[32]]), IMAGE)
    assert (shape.length, shape.tokens, shape.states) == (80, 80, 32)
    assert shape_for(_counts([[63]], [[32]]), IMAGE).tokens == 64

    # Short samples share rows where that makes attention cheaper.
    assert cheapest_rows(np.array([[200, 50, 60, 90], [100, 100, 100, 100]])) == 2
    assert cheapest_rows(np.array([[600, 620], [610, 630]])) == 2


@pytest.mark.parametrize(
    "less", ["samples", "attention_rows", "length", "tokens", "states", "understood", "drawn"]
)
def test_samples_that_do_not_fit_the_shape_are_never_cut(less: str) -> None:
    samples = [
        _sample("interleaved", key, prompt="w1 " * 20, answer="w2 " * 20, shown=2, drawn=3)
        for key in range(3)
    ]
    longest, pictures = len(samples[0].input_ids), {"understood": 6, "drawn": 9}
    exact = BatchShape(3, 3, longest + 1, 3 * longest + 1, 3 * 21, **pictures, image=IMAGE)
    batch = _collate("interleaved", samples, exact)
    assert (batch.samples, batch.tokens, batch.supervised) == (3, 3 * longest, 63 + 9 * TOKENS)
    small = replace(exact, **{less: getattr(exact, less) - 1})
    with pytest.raises(ValueError, match="interleaved/0 to interleaved/2 do not fit"):
        _collate("interleaved", samples, small)


@pytest.mark.parametrize("times", [1, 4])
def test_less_than_5_percent_of_a_realistic_mixed_step_is_padding(times: int) -> None:
    """5:1:4 in calls of at most 8, on the lengths of real samples."""
    counts = {"vqa": 5 * times, "text": times, "t2i": 4 * times}
    calls = {task: cut(count, 8) for task, count in counts.items()}
    lengths = {task: tuple(x.astype(np.int64) for x in realistic_lengths(task)) for task in counts}
    weights = {task: sample_weights(*pair) for task, pair in lengths.items()}
    plan = Plan(0, weights, counts, {task: rows for task, (_, rows) in calls.items()})
    steps, real, computed = 60, 0, 0
    for task, (tokens, _) in lengths.items():
        shape = shape_for(_counts(plan.sizes(task, steps, tokens)), ImageShape(SIDE, 576, CODES))
        real += tokens[plan.draw(task, 1, steps).indices].sum()
        computed += steps * calls[task][0] * shape.tokens
    assert 0 < 1 - real / computed < 0.05


NO_SPANS, NO_CODES = np.zeros((0, 3), np.int32), np.zeros(0, np.uint16)
NO_TOKENS = np.zeros(0, np.int32)


@pytest.mark.parametrize(
    ("task", "change", "says"),
    [
        ("vqa", {"task": "text"}, "is of task text, not vqa"),
        ("text", {"split": "test"}, "marked test"),
        ("text", {"supervised": NO_SPANS}, "no supervised tokens"),
        ("text", {"supervised": np.array([[0, 2, TEXT]], np.int32)}, "spans outside"),
        ("text", {"supervised": np.array([[3, 2000, TEXT]], np.int32)}, "spans outside"),
        ("text", {"input_ids": NO_TOKENS, "supervised": NO_SPANS}, "no supervised tokens"),
        ("text", {"input_ids": NO_TOKENS, "supervised": np.array([[1, 2, TEXT]], np.int32)}, "its 0 tokens"),
        ("vqa", {"images": ()}, "has no image"),
        ("edit", {"images": ()}, "has no image"),
        ("interleaved", {"images": ()}, "8 image placeholders, the model takes 4"),
        ("vqa", {"images": [np.zeros((16, 16, 3), np.uint8)]}, "16 pixels, the model takes 8"),
        ("edit", {"images": [np.zeros((16, 16, 3), np.uint8)]}, "16 pixels, the model takes 8"),
        ("t2i", {"image_tokens": NO_CODES}, "has no image tokens"),
        ("edit", {"image_tokens": NO_CODES}, "has no image tokens"),
        ("t2i", {"image_tokens": np.zeros(3, np.uint16)}, "3 image tokens, the model takes 4 a picture"),
        ("t2i", {"image_tokens": np.zeros(8, np.uint16)}, "4 image placeholders, the model takes 8"),
        ("t2i", {"image_tokens": np.array([0, 0, 0, 50], np.uint16)}, "image token 50, the model has 50"),
    ],
)
def test_a_sample_its_task_cannot_be_trained_on_is_named(task: str, change: dict, says: str) -> None:
    sample, fitting = _sample(task, 7), _sample(task, 6)
    with pytest.raises(UserError, match=f"^sample {task}/7: .*{says}"):
        _collate(task, [fitting, replace(sample, **change)], shape_of([fitting, sample], IMAGE))


@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_a_drawn_picture_without_all_its_slots_is_named(task: str) -> None:
    sample = _sample(task)
    shape = shape_of([sample], IMAGE)
    ids = np.where(np.arange(len(sample.input_ids)) == sample.supervised[0, 0], 0, sample.input_ids)
    shifted = sample.supervised + np.array([[1, 0, 0]], np.int32)
    placeholders = TOKENS * (1 + len(sample.images))
    with pytest.raises(
        UserError, match=f"{placeholders - 1} image placeholders, the model takes {placeholders}"
    ):
        _collate(task, [replace(sample, input_ids=ids)], shape)
    with pytest.raises(UserError, match="supervises 3 image positions, its pictures have 4 tokens"):
        _collate(task, [replace(sample, supervised=shifted)], shape)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 50), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 8)
)
def test_samples_of_a_row_stand_side_by_side(lengths: list[list[int]], rows: int) -> None:
    lengths_CN = np.array(lengths)
    row_CN, slot_CN = pack(lengths_CN, rows)
    assert row_CN.max() < rows
    for call, row_N, slot_N in zip(lengths_CN, row_CN, slot_CN, strict=True):
        for row in range(rows):
            there = np.flatnonzero((row_N == row) & (call > 0))
            there = there[np.argsort(slot_N[there])]
            np.testing.assert_array_equal(slot_N[there], np.cumsum([0, *call[there]])[:-1])
        # Longest first to the least full: at worst 4/3 of the best there can be.
        assert fullest_row(call[None], rows) <= max(call.max(), call.sum() / rows) * 2
