"""Samples to arrays: what is supervised, what each state sees, and what is refused."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_shards import WORDS, realistic_lengths, shape_of, word_tokenizer

from janus.common.errors import UserError
from janus.prompts import PromptRow, encode_samples, unconditional
from janus.tokens import IGNORE
from shards.schema import RowBlock, Sample
from trainer.stream.collate import collate, without_prompts
from trainer.stream.plan import Plan, cut, sample_weights
from trainer.stream.shapes import Batch, BatchShape, ImageShape, cheapest_rows, fullest_row, pack, shape_for

SIDE, TOKENS, CODES = 8, 4, 50
IMAGE = ImageShape(SIDE, TOKENS, CODES)
TASKS = ("text", "vqa", "t2i")


def _sample(
    task: str, key: int = 0, prompt: str = "w1 w2", answer: str = "w3", history: tuple = ()
) -> Sample:
    """A sample as the shards would give it, with an image of 4 tokens."""
    rng = np.random.default_rng(key)
    row = PromptRow(task, prompt, "" if task == "t2i" else answer, history)
    (encoded,) = encode_samples(word_tokenizer(), [row], TOKENS)
    return Sample(
        sample_id=f"{task}/{key}",
        task=task,
        source="test",
        split="train",
        source_key=str(key),
        sha256="",
        image_sha256=None,
        history=history,
        prompt=prompt,
        answer=row.answer,
        input_ids=encoded.input_ids,
        supervised=encoded.supervised,
        image=rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) if task == "vqa" else None,
        image_tokens=rng.integers(0, CODES, TOKENS).astype(np.uint16) if task == "t2i" else None,
    )


def _collate(task: str, samples: list[Sample], shape: BatchShape) -> Batch:
    (batch,) = collate(task, RowBlock.of(samples), [len(samples)], shape, word_tokenizer().special)
    return batch


def _shape(task: str, samples: list[Sample], spare: int = 0, rows: int | None = None) -> BatchShape:
    return shape_of(task, samples, IMAGE, rows, spare)


def _batch(
    task: str, samples: list[Sample], spare: int = 0, rows: int | None = None
) -> tuple[Batch, BatchShape]:
    shape = _shape(task, samples, spare, rows)
    return _collate(task, samples, shape), shape


def _targets(batch: Batch) -> list[tuple[int, int]]:
    used = batch.labels_N != IGNORE
    return list(zip(batch.state_rows_N[used].tolist(), batch.labels_N[used].tolist(), strict=True))


def test_the_first_image_token_is_trained_and_begin_of_image_predicts_it() -> None:
    sample = _sample("t2i")
    batch, _ = _batch("t2i", [sample])
    begin = int(np.argmax(sample.input_ids == word_tokenizer().special.begin_of_image))
    assert _targets(batch) == list(enumerate(sample.image_tokens.tolist(), begin))
    assert batch.supervised == TOKENS
    # The state at the slot of token j has seen tokens 0 to j: slot j is embedding j of the image.
    assert batch.image_index_P[begin + 1 : begin + 1 + TOKENS].tolist() == [1, 2, 3, 4]
    assert (batch.image_index_P > 0).sum() == TOKENS


def test_the_null_prompt_is_the_samplers_and_stays_attended_to() -> None:
    special, sample = word_tokenizer().special, _sample("t2i", prompt="w1 w2 w3")
    shape = _shape("t2i", [sample])
    nulled = without_prompts(RowBlock.of([sample]), [0], special)
    (batch,) = collate("t2i", nulled, [1], shape, special)
    length = len(sample.input_ids)
    begin = int(np.argmax(sample.input_ids == special.begin_of_image))
    ids = batch.input_ids_P
    assert ids[: begin + 1].tolist() == [special.bos, *[special.pad] * (begin - 1), special.begin_of_image]
    np.testing.assert_array_equal(ids[:length], unconditional(sample.input_ids, special))
    # Pad ids within the sample are positions like any other; only what is empty is not.
    assert batch.segment_ids_BS[0].tolist() == [1] * length + [0] * (shape.length - length)
    assert _targets(batch) == _targets(_batch("t2i", [sample])[0])


def test_every_answer_of_a_conversation_is_supervised_with_its_eos() -> None:
    history = (("w1 w2", "w3 w4 w5"), ("w6", "w7"))
    sample = _sample("vqa", prompt="w8", answer="w9 w10", history=history)
    batch, _ = _batch("vqa", [sample])
    states, labels = zip(*_targets(batch), strict=True)
    eos = word_tokenizer().special.eos
    answers, current = [], []
    for label in labels:
        current.append(label)
        if label == eos:
            answers.append(word_tokenizer().decode(current[:-1]))
            current = []
    assert [answer.split() for answer in answers] == [["w3", "w4", "w5"], ["w7"], ["w9", "w10"]]
    assert current == []
    assert [sample.input_ids[state + 1] for state in states] == list(labels)


def _places(samples: list[Sample]) -> list[slice]:
    """Where each sample stands on the token axis."""
    ends = np.cumsum([len(sample.input_ids) for sample in samples]).tolist()
    return [slice(start, end) for start, end in pairwise([0, *ends])]


@st.composite
def _samples(draw: st.DrawFn) -> tuple[str, list[Sample]]:
    task = draw(st.sampled_from(TASKS))
    words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
    sample = st.builds(_sample, st.just(task), st.integers(0, 99), words, words)
    return task, draw(st.lists(sample, min_size=1, max_size=8))


def _plainly(task: str, samples: list[Sample], shape: BatchShape) -> dict[str, np.ndarray]:
    """The arrays of a call, one sample and one token after the other."""
    lengths = np.zeros((1, shape.samples), np.int64)
    lengths[0, : len(samples)] = [len(sample.input_ids) for sample in samples]
    rows_N, slots_N = pack(lengths, shape.attention_rows)
    special, grid = word_tokenizer().special, (shape.attention_rows, shape.length)
    images, names = (shape.images, shape.image.tokens), ("position_ids_P", "image_index_P")
    arrays = {name: np.zeros(shape.tokens, np.int32) for name in names}
    arrays |= {"input_ids_P": np.full(shape.tokens, special.pad), "segment_ids_BS": np.zeros(grid, np.int32)}
    arrays |= {"token_of_BS": np.full(grid, shape.tokens - 1), "labels_N": np.full(shape.states, IGNORE)}
    arrays |= {"slot_of_P": np.full(shape.tokens, shape.attention_rows * shape.length - 1)}
    arrays |= {"state_rows_N": np.zeros(shape.states, np.int32)}
    if task == "vqa":
        arrays["pixels_IHWC"] = np.zeros((shape.images, SIDE, SIDE, 3), np.uint8)
    if task == "t2i":
        arrays["image_tokens_IT"] = np.zeros(images, np.int32)
    token = image_slot = state = 0
    for row, sample in enumerate(samples):
        first, codes = token, iter(() if sample.image_tokens is None else sample.image_tokens.tolist())
        for position, token_id in enumerate(sample.input_ids.tolist()):
            arrays["input_ids_P"][token], arrays["position_ids_P"][token] = token_id, position
            place = rows_N[0, row], slots_N[0, row] + position
            arrays["token_of_BS"][place], arrays["segment_ids_BS"][place] = token, 1 + row
            arrays["slot_of_P"][token] = place[0] * shape.length + place[1]
            if token_id == special.image_placeholder:
                image_slot += 1
                arrays["image_index_P"][token] = image_slot
            token += 1
        for target in (place for span in sample.supervised.tolist() for place in range(*span)):
            arrays["state_rows_N"][state] = first + target - 1
            arrays["labels_N"][state] = next(codes) if task == "t2i" else sample.input_ids[target]
            state += 1
        if task == "vqa":
            arrays["pixels_IHWC"][row] = sample.image
        if task == "t2i":
            arrays["image_tokens_IT"][row] = sample.image_tokens
    return arrays


@settings(max_examples=60, deadline=None)
@given(_samples(), st.integers(1, 8), st.integers(1, 4))
def test_calls_made_together_are_those_made_plainly(
    task_samples: tuple[str, list[Sample]], count: int, rows: int
) -> None:
    task, samples = task_samples
    calls = [samples[start : start + count] for start in range(0, len(samples), count)]
    shape = _shape(task, samples, rows=rows)
    batches = collate(task, RowBlock.of(samples), list(map(len, calls)), shape, word_tokenizer().special)
    for call, batch in zip(calls, batches, strict=True):
        plain = _plainly(task, call, shape)
        given_ = {name: array for name, array in vars(batch).items() if isinstance(array, np.ndarray)}
        assert given_.keys() == plain.keys()
        for name, array in plain.items():
            np.testing.assert_array_equal(given_[name], array, err_msg=name)
            assert given_[name].dtype == (np.uint8 if name == "pixels_IHWC" else np.int32)


@settings(max_examples=60, deadline=None)
@given(_samples(), st.integers(0, 2), st.integers(1, 10))
def test_tokens_and_slots_point_at_each_other_and_padding_at_padding(
    task_samples: tuple[str, list[Sample]], spare: int, rows: int
) -> None:
    task, samples = task_samples
    batch, shape = _batch(task, samples, spare, rows)
    assert batch.token_of_BS.shape == (rows, shape.length)
    token_of, segments = batch.token_of_BS.reshape(-1), batch.segment_ids_BS.reshape(-1)
    real = np.arange(batch.tokens)
    np.testing.assert_array_equal(token_of[batch.slot_of_P[real]], real)
    used = np.flatnonzero(segments)
    np.testing.assert_array_equal(batch.slot_of_P[token_of[used]], used)
    assert len(used) == batch.tokens
    for number, places in enumerate(_places(samples), 1):
        # In order and without a gap, in one row: attention is causal by slot.
        row, slots = np.nonzero(batch.segment_ids_BS == number)
        np.testing.assert_array_equal(token_of[segments == number], real[places])
        assert (np.diff(slots) == 1).all()
        assert len(set(row)) == 1
    last_token, last_slot = shape.tokens - 1, shape.attention_rows * shape.length - 1
    assert set(token_of[segments == 0].tolist()) == {last_token}
    assert set(batch.slot_of_P[batch.tokens :].tolist()) == {last_slot}
    # Neither is ever real: what is written there or read from there belongs to no sample.
    assert batch.tokens <= last_token
    assert segments[last_slot] == 0
    states = batch.state_rows_N[batch.labels_N != IGNORE]
    assert states.max() < batch.tokens


def test_shapes_are_the_smallest_that_fit_all() -> None:
    tokens, supervised = (
        np.array([[65, 60, 50, 25], [30, 30, 20, 0]]),
        np.array([[10, 10, 10, 3], [1, 1, 1, 0]]),
    )
    shape = shape_for("text", tokens, supervised, IMAGE)
    assert shape == BatchShape(4, attention_rows=3, length=80, tokens=208, states=48, images=0, image=IMAGE)
    assert shape_for("vqa", tokens, supervised, IMAGE).images == 4
    # One token and one slot of a row stay empty, also where the numbers are round; states need no such place.
    shape = shape_for("t2i", np.array([[64]]), np.array([[32]]), IMAGE)
    assert (shape.length, shape.tokens, shape.states) == (80, 80, 32)
    assert shape_for("t2i", np.array([[63]]), np.array([[32]]), IMAGE).tokens == 64
    # A resumed run keeps its shape where that is large enough.
    saved = {**shape.sizes, "rows": 1, "states": 64}
    kept = shape_for("t2i", np.array([[63]]), np.array([[32]]), IMAGE, saved=saved)
    assert kept.sizes == saved


@pytest.mark.parametrize("less", ["samples", "attention_rows", "length", "tokens", "states"])
def test_samples_that_do_not_fit_the_shape_are_never_cut(less: str) -> None:
    samples = [_sample("text", key, prompt="w1 " * 20, answer="w2 " * 20) for key in range(3)]
    longest = len(samples[0].input_ids)
    exact = BatchShape(3, 3, longest + 1, 3 * longest + 1, 3 * 21, 0, IMAGE)
    batch = _collate("text", samples, exact)
    assert (batch.samples, batch.tokens, batch.supervised) == (3, 3 * longest, 63)
    small = replace(exact, **{less: getattr(exact, less) - 1})
    with pytest.raises(ValueError, match="text/0 to text/2 do not fit"):
        _collate("text", samples, small)


def _long_sample(task: str, key: int, tokens: int, supervised: int) -> Sample:
    """A sample of so many tokens with 576 image tokens, its last ones supervised."""
    special, image = word_tokenizer().special, ImageShape(SIDE, 576, CODES)
    ids = np.zeros(tokens, np.int32)
    if task != "text":
        ids[tokens - 20 - image.tokens : tokens - 20] = special.image_placeholder
    end = tokens - 20 if task == "t2i" else tokens
    return replace(
        _sample(task, key),
        input_ids=ids,
        supervised=np.array([[end - supervised, end]], np.int32),
        image_tokens=np.zeros(image.tokens, np.uint16) if task == "t2i" else None,
    )


@pytest.mark.parametrize("times", [1, 4])
def test_less_than_5_percent_of_a_realistic_mixed_step_is_padding(times: int) -> None:
    """5:1:4 in calls of at most 8, on the lengths of real samples."""
    counts = {"vqa": 5 * times, "text": times, "t2i": 4 * times}
    rows = {task: cut(count, 8)[1] for task, count in counts.items()}
    lengths = {task: tuple(x.astype(np.int64) for x in realistic_lengths(task)) for task in counts}
    weights = {task: sample_weights(*pair) for task, pair in lengths.items()}
    plan = Plan(0, weights, counts, rows)
    steps, real, computed = 60, 0, 0
    for task, (tokens, states) in lengths.items():
        sizes = (plan.sizes(task, steps, numbers) for numbers in (tokens, states))
        shape = shape_for(task, *sizes, ImageShape(SIDE, 576, CODES))
        for step in range(1, steps + 1):
            drawn = plan.draw(task, step).indices
            for start in range(0, len(drawn), rows[task]):
                call = drawn[start : start + rows[task]]
                samples = [_long_sample(task, row, tokens[row], states[row]) for row in call.tolist()]
                batch = _collate(task, samples, shape)
                real, computed = real + batch.tokens, computed + batch.input_ids_P.size
    assert 0 < 1 - real / computed < 0.05


@pytest.mark.parametrize(
    ("task", "change", "says"),
    [
        ("vqa", {"task": "text"}, "is of task text, not vqa"),
        ("text", {"split": "test"}, "marked test"),
        ("text", {"supervised": np.zeros((0, 2), np.int32)}, "no supervised tokens"),
        ("text", {"supervised": np.array([[0, 2]], np.int32)}, "spans outside"),
        ("text", {"supervised": np.array([[3, 2000]], np.int32)}, "spans outside"),
        ("vqa", {"image": None}, "has no image"),
        ("vqa", {"image": np.zeros((16, 16, 3), np.uint8)}, "16 pixels, the model takes 8"),
        ("t2i", {"image_tokens": None}, "has no image tokens"),
        ("t2i", {"image_tokens": np.zeros(3, np.uint16)}, "3 image tokens, the model takes 4"),
        ("t2i", {"image_tokens": np.array([0, 0, 0, 50], np.uint16)}, "image token 50, the model has 50"),
    ],
)
def test_a_sample_its_task_cannot_be_trained_on_is_named(task: str, change: dict, says: str) -> None:
    sample = replace(_sample(task, 7), **change)
    shape = _shape(task, [_sample(task, 7)])
    with pytest.raises(UserError, match=says) as caught:
        _collate(task, [sample], shape)
    assert caught.value.message.startswith(f"sample {task}/7: ")


def test_a_t2i_row_without_all_its_slots_is_named() -> None:
    sample = _sample("t2i")
    ids = np.where(np.arange(len(sample.input_ids)) == sample.supervised[0, 0], 0, sample.input_ids)
    shape = _shape("t2i", [sample])
    with pytest.raises(UserError, match="3 image placeholders, the model takes 4"):
        _collate("t2i", [replace(sample, input_ids=ids)], shape)
    less = replace(sample, supervised=sample.supervised + np.array([[1, 0]], np.int32))
    with pytest.raises(UserError, match="supervises 3 positions, its image has 4"):
        _collate("t2i", [less], shape)


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


def test_short_samples_share_rows_where_that_makes_attention_cheaper() -> None:
    assert cheapest_rows(np.array([[200, 50, 60, 90], [100, 100, 100, 100]])) == 2
    assert cheapest_rows(np.array([[600, 620], [610, 630]])) == 2
