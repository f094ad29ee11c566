"""Layouts by hand: line breaks, spans and null prompts of conversations with pictures anywhere."""

import re
from pathlib import Path

import numpy as np
import pytest
from layouts import image_of, laid_out
from paths import TOKENIZERS
from test_prompts import PUBLISHED, opened
from trainer_shards import TOKENS

from janus.prompts import (
    EncodedSample,
    Message,
    before_answer,
    encode_samples,
    task_of,
    unconditional,
)


def shown(text: str, number: int = 1) -> Message:
    return Message("user", text, ["f" * 64] * number)


def drawn(text: str = "", number: int = 1) -> Message:
    return Message("assistant", text, ["f" * 64] * number)


LAYOUTS = {
    "text": (
        "text",
        [Message("user", " Why? "), Message("assistant", "So.\n")],
        "{system}<|User|>: Why?\n\n<|Assistant|>:[[ So.<eos>]]",
    ),
    "two pictures in one message": (
        "vqa",
        [shown("What?", 2), Message("assistant", "Alike.")],
        "{system}<|User|>: <img>\n\n<img>\nWhat?\n\n<|Assistant|>:[[ Alike.<eos>]]",
    ),
    "three pictures": (
        "vqa",
        [shown("What?", 3), Message("assistant", "Alike.")],
        "{system}<|User|>: <img>\n\n<img>\n\n<img>\nWhat?\n\n<|Assistant|>:[[ Alike.<eos>]]",
    ),
    "pictures between texts": (
        "vqa",
        [Message("user", "Compare"), shown("with"), shown("", 1), Message("assistant", "Alike.")],
        "{system}<|User|>: Compare\n<img>\nwith\n<img>\n\n<|Assistant|>:[[ Alike.<eos>]]",
    ),
    "a picture behind two texts": (
        "vqa",
        [Message("user", "One"), Message("user", "two"), shown(""), Message("assistant", "Three.")],
        "{system}<|User|>: One two\n<img>\n\n<|Assistant|>:[[ Three.<eos>]]",
    ),
    "a picture in an earlier turn": (
        "vqa",
        [shown("One?"), Message("assistant", "1"), Message("user", "Two?"), Message("assistant", "2")],
        "{system}<|User|>: <img>\nOne?\n\n<|Assistant|>:[[ 1<eos>]]"
        "<|User|>: Two?\n\n<|Assistant|>:[[ 2<eos>]]",
    ),
    "a picture in each turn": (
        "vqa",
        [
            shown("One?"),
            Message("assistant", "1"),
            Message("user", "And"),
            shown(""),
            Message("assistant", "2"),
        ],
        "{system}<|User|>: <img>\nOne?\n\n<|Assistant|>:[[ 1<eos>]]"
        "<|User|>: And\n<img>\n\n<|Assistant|>:[[ 2<eos>]]",
    ),
    "a system message": (
        "vqa",
        [Message("system", " Be brief. "), shown("Why?"), Message("assistant", "So.")],
        "Be brief.\n\n<|User|>: <img>\nWhy?\n\n<|Assistant|>:[[ So.<eos>]]",
    ),
    "t2i": ("t2i", [Message("user", "A cat"), drawn()], "<|User|>: A cat\n\n<|Assistant|>:<draw>"),
    "t2i with a system message": (
        "t2i",
        [Message("system", "Draw well."), Message("user", "A cat"), drawn()],
        "Draw well.\n\n<|User|>: A cat\n\n<|Assistant|>:<draw>",
    ),
    "edit": ("edit", [shown("Blue!"), drawn()], "<|User|>: <img>\nBlue!\n\n<|Assistant|>:<draw>"),
    "edit of two pictures": (
        "edit",
        [shown("Both!", 2), drawn()],
        "<|User|>: <img>\n\n<img>\nBoth!\n\n<|Assistant|>:<draw>",
    ),
    "edit in two turns": (
        "edit",
        [shown("Blue!"), drawn(), Message("user", "Larger!"), drawn()],
        "<|User|>: <img>\nBlue!\n\n<|Assistant|>:<draw><eos><|User|>: Larger!\n\n<|Assistant|>:<draw>",
    ),
    "two drawn": (
        "t2i",
        [Message("user", "Cats"), drawn("", 2)],
        "<|User|>: Cats\n\n<|Assistant|>:<draw>\n\n<draw>",
    ),
    "interleaved": (
        "interleaved",
        [shown("Draw two."), Message("assistant", "One:"), drawn("two:"), drawn()],
        "{system}<|User|>: <img>\nDraw two.\n\n<|Assistant|>:[[ One:\n]]<draw>[[\ntwo:\n]]<draw>[[<eos>]]",
    ),
    "interleaved, the picture first": (
        "interleaved",
        [Message("user", "A cat"), drawn("This is one.")],
        "{system}<|User|>: A cat\n\n<|Assistant|>:<draw>[[\nThis is one.<eos>]]",
    ),
}
"""Task, conversation and its layout by hand, see `layouts`."""


@pytest.mark.parametrize("name", ["sample", *PUBLISHED])
@pytest.mark.parametrize("case", LAYOUTS)
def test_ids_and_spans_are_those_of_the_layout_by_hand(sample_data: Path, name: str, case: str) -> None:
    tokenizer = opened(sample_data / "tokenizer" if name == "sample" else TOKENIZERS / name)
    task, messages, layout = LAYOUTS[case]
    assert task_of(messages) == task
    (sample,) = encode_samples(tokenizer, [messages], TOKENS)
    ids, spans = laid_out(layout, tokenizer, TOKENS)
    assert (sample.input_ids.tolist(), sample.supervised.tolist()) == (ids, spans)
    prompt = before_answer(sample.input_ids, sample.supervised, tokenizer.special).tolist()
    last = ids[: len(ids) - ids[::-1].index(tokenizer.special.assistant)]
    draws_first = layout.rpartition("<|Assistant|>:")[2].startswith("<draw>")
    expected = [*last, *tokenizer.encode_texts([":"])[0], *[tokenizer.special.begin_of_image] * draws_first]
    assert prompt == expected


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_beginning_of_a_picture_is_a_target_only_where_that_is_asked_for(
    sample_data: Path, case: str
) -> None:
    tokenizer = opened(sample_data / "tokenizer")
    task, messages, layout = LAYOUTS[case]
    (sample,) = encode_samples(tokenizer, [messages], TOKENS, train_begin=True)
    layout = layout.replace("<draw>", "<begin-draw>") if task == "interleaved" else layout
    assert [sample.input_ids.tolist(), sample.supervised.tolist()] == [*laid_out(layout, tokenizer, TOKENS)]


NONE = -1


def kinds_of(sample: EncodedSample) -> np.ndarray:
    """TEXT, IMAGE or NONE for each token."""
    kinds = np.full(len(sample.input_ids), NONE)
    for start, end, kind in sample.supervised.tolist():
        kinds[start:end] = kind
    return kinds


NULLED = {
    "t2i": "_<draw>",
    "t2i with a system message": "_<draw>",
    "edit": "_<img>_<draw>",
    "edit of two pictures": "_<img>_<img>_<draw>",
    "edit in two turns": "_<img>_<img>_<draw>",
    "interleaved": "_<img>_<img>_<draw>",
    "interleaved, the picture first": "_<draw>",
}
"""The null prompt of layouts that draw, up to the last picture: `_` are pads."""


@pytest.mark.parametrize("case", NULLED)
def test_the_null_prompt_keeps_pictures_and_loses_words(sample_data: Path, case: str) -> None:
    """Of training as well as of sampling; what is supervised stays, for it is predicted."""
    tokenizer = opened(sample_data / "tokenizer")
    special = tokenizer.special
    (sample,) = encode_samples(tokenizer, [LAYOUTS[case][1]], TOKENS)
    ids, kinds = sample.input_ids.tolist(), kinds_of(sample)
    nulled = unconditional(sample.input_ids, special).tolist()
    last = len(ids) - ids[::-1].index(special.begin_of_image) - 1
    expected, inside = [special.bos], False
    for token in ids[1:last]:
        inside |= token == special.begin_of_image
        expected.append(token if inside else special.pad)
        inside &= token != special.end_of_image
    assert nulled == [*expected, *ids[last:]]
    pads = "".join("_" if i == special.pad else "<" * (i == special.begin_of_image) for i in nulled[1:last])
    assert re.sub("_+", "_", pads).replace("<", "<img>") + "<draw>" == NULLED[case]
    assert nulled[last : last + TOKENS + 2] == image_of(special, TOKENS)
    training = unconditional(sample.input_ids, special, sample.supervised).tolist()
    assert training == [i if kind != NONE else n for i, n, kind in zip(ids, nulled, kinds, strict=True)]
    prompt = before_answer(sample.input_ids, sample.supervised, special)
    if prompt[-1] == special.begin_of_image:  # what a sampler begins with
        assert unconditional(prompt, special).tolist() == nulled[: len(prompt)]
