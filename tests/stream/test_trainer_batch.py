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
PICTURES = {"vqa": ("pixels_IHWC", (SIDE, SIDE, 3)), "t2i": ("image_tokens_IT", (TOKENS,))}


def _sample(
    task: str, key: int = 0, prompt: str = "w1 w2", answer: str = "w3", history: tuple = ()
) -> Sample:
    rng = np.random.default_rng(key)
    row = PromptRow(task, prompt, "" if task == "t2i" else answer, history)
    (encoded,) = encode_samples(word_tokenizer(), [row], TOKENS)
    texts = {"source": "test", "split": "train", "source_key": str(key), "sha256": "", "image_sha256": None}
    return Sample(
        **{**texts, **vars(row), **vars(encoded)},
        sample_id=f"{task}/{key}",
        image=rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) if task == "vqa" else None,
        image_tokens=rng.integers(0, CODES, TOKENS).astype(np.uint16) if task == "t2i" else None,
    )


def _collate(task: str, samples: list[Sample], shape: BatchShape | None = None) -> Batch:
    shape = shape or shape_of(task, samples, IMAGE)
    (batch,) = collate(task, RowBlock.of(samples), [len(samples)], shape, word_tokenizer().special)
    return batch


def _targets(batch: Batch) -> list[tuple[int, int]]:
    used = batch.labels_N != IGNORE
    return list(zip(batch.state_rows_N[used].tolist(), batch.labels_N[used].tolist(), strict=True))


def test_the_first_image_token_is_trained_and_begin_of_image_predicts_it() -> None:
    sample = _sample("t2i")
    batch = _collate("t2i", [sample])
    begin = int(np.argmax(sample.input_ids == word_tokenizer().special.begin_of_image))
    assert _targets(batch) == list(enumerate(sample.image_tokens.tolist(), begin))
    assert batch.supervised == TOKENS
    # The state at the slot of token j has seen tokens 0 to j: slot j is embedding j of the image.
    assert batch.image_index_P[begin + 1 : begin + 1 + TOKENS].tolist() == [1, 2, 3, 4]
    assert (batch.image_index_P > 0).sum() == TOKENS


def test_the_null_prompt_is_the_samplers_and_stays_attended_to() -> None:
    special, sample = word_tokenizer().special, _sample("t2i", prompt="w1 w2 w3")
    shape = shape_of("t2i", [sample], IMAGE)
    nulled = without_prompts(RowBlock.of([sample]), [0], special)
    (batch,) = collate("t2i", nulled, [1], shape, special)
    length = len(sample.input_ids)
    begin = int(np.argmax(sample.input_ids == special.begin_of_image))
    ids = batch.input_ids_P
    assert ids[: begin + 1].tolist() == [special.bos, *[special.pad] * (begin - 1), special.begin_of_image]
    np.testing.assert_array_equal(ids[:length], unconditional(sample.input_ids, special))
    # Pad ids within the sample are positions like any other; only what is empty is not.
    assert batch.segment_ids_BS[0].tolist() == [1] * length + [0] * (shape.length - length)
    assert _targets(batch) == _targets(_collate("t2i", [sample]))


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
    task = draw(st.sampled_from(TASKS))
    words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
    sample = st.builds(_sample, st.just(task), st.integers(0, 99), words, words)
    return task, draw(st.lists(sample, min_size=1, max_size=8))


def _plainly(task: str, samples: list[Sample], shape: BatchShape) -> dict[str, np.ndarray]:
    lengths = np.zeros((1, shape.samples), np.int64)
    lengths[0, : len(samples)] = [len(sample.input_ids) for sample in samples]
    rows_N, slots_N = pack(lengths, shape.attention_rows)
    special, grid = word_tokenizer().special, (shape.attention_rows, shape.length)
    names = ("position_ids_P", "image_index_P")
    arrays = {name: np.zeros(shape.tokens, np.int32) for name in names}
    arrays |= {"input_ids_P": np.full(shape.tokens, special.pad), "segment_ids_BS": np.zeros(grid, np.int32)}
    arrays |= {"token_of_BS": np.full(grid, shape.tokens - 1), "labels_N": np.full(shape.states, IGNORE)}
    arrays |= {"slot_of_P": np.full(shape.tokens, shape.attention_rows * shape.length - 1)}
    arrays |= {"state_rows_N": np.zeros(shape.states, np.int32)}
    name, per_image = PICTURES.get(task, ("", ()))
    if name:
        arrays[name] = np.zeros((shape.images, *per_image), np.int32)
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
        if name:
            arrays[name][row] = sample.image if task == "vqa" else sample.image_tokens
    return arrays


@settings(max_examples=60, deadline=None)
@given(_samples(), st.integers(1, 8), st.integers(1, 4))
def test_calls_are_those_made_plainly(task_samples: tuple[str, list[Sample]], count: int, rows: int) -> None:
    task, samples = task_samples
    calls = [samples[start : start + count] for start in range(0, len(samples), count)]
    shape = shape_of(task, samples, IMAGE, rows)
    batches = collate(task, RowBlock.of(samples), list(map(len, calls)), shape, word_tokenizer().special)
    for call, batch in zip(calls, batches, strict=True):
        plain = _plainly(task, call, shape)
        given_ = {name: array for name, array in vars(batch).items() if isinstance(array, np.ndarray)}
        assert given_.keys() == plain.keys()
        for name, array in plain.items():
            np.testing.assert_array_equal(given_[name], array, err_msg=name)
            assert given_[name].dtype == (np.uint8 if name == "pixels_IHWC" else np.int32)
        # Padding points at the last token and the last slot: neither is real, so it belongs to no sample.
        assert batch.tokens < shape.tokens
        assert batch.segment_ids_BS[-1, -1] == 0
        assert batch.state_rows_N[batch.labels_N != IGNORE].max() < batch.tokens


def test_shapes_are_the_smallest_that_fit_all() -> None:
    tokens = np.array([[65, 60, 50, 25], [30, 30, 20, 0]])
    supervised = np.array([[10, 10, 10, 3], [1, 1, 1, 0]])
    shape = shape_for("text", tokens, supervised, IMAGE)
    assert shape == BatchShape(4, attention_rows=3, length=80, tokens=208, states=48, images=0, image=IMAGE)
    assert shape_for("vqa", tokens, supervised, IMAGE).images == 4
    # One token and one slot of a row stay empty, also where the numbers are round; states need no such place.
    shape = shape_for("t2i", np.array([[64]]), np.array([[32]]), IMAGE)
    assert (shape.length, shape.tokens, shape.states) == (80, 80, 32)
    assert shape_for("t2i", np.array([[63]]), np.array([[32]]), IMAGE).tokens == 64

    # Short samples share rows where that makes attention cheaper.
    assert cheapest_rows(np.array([[200, 50, 60, 90], [100, 100, 100, 100]])) == 2
    assert cheapest_rows(np.array([[600, 620], [610, 630]])) == 2


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


@pytest.mark.parametrize("times", [1, 4])
def test_less_than_5_percent_of_a_realistic_mixed_step_is_padding(times: int) -> None:
    """5:1:4 in calls of at most 8, on the lengths of real samples."""
    counts = {"vqa": 5 * times, "text": times, "t2i": 4 * times}
    calls = {task: cut(count, 8) for task, count in counts.items()}
    lengths = {task: tuple(x.astype(np.int64) for x in realistic_lengths(task)) for task in counts}
    weights = {task: sample_weights(*pair) for task, pair in lengths.items()}
    plan = Plan(0, weights, counts, {task: rows for task, (_, rows) in calls.items()})
    steps, real, computed = 60, 0, 0
    for task, (tokens, states) in lengths.items():
        sizes = (plan.sizes(task, steps, numbers) for numbers in (tokens, states))
        shape = shape_for(task, *sizes, ImageShape(SIDE, 576, CODES))
        real += tokens[plan.draw(task, 1, steps).indices].sum()
        computed += steps * calls[task][0] * shape.tokens
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
    sample = _sample(task, 7)
    with pytest.raises(UserError, match=f"^sample {task}/7: .*{says}"):
        _collate(task, [replace(sample, **change)], shape_of(task, [sample], IMAGE))


def test_a_t2i_row_without_all_its_slots_is_named() -> None:
    sample = _sample("t2i")
    shape = shape_of("t2i", [sample], IMAGE)
    ids = np.where(np.arange(len(sample.input_ids)) == sample.supervised[0, 0], 0, sample.input_ids)
    shifted = sample.supervised + np.array([[1, 0]], np.int32)
    with pytest.raises(UserError, match="3 image placeholders, the model takes 4"):
        _collate("t2i", [replace(sample, input_ids=ids)], shape)
    with pytest.raises(UserError, match="supervises 3 positions, its image has 4"):
        _collate("t2i", [replace(sample, supervised=shifted)], shape)


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
