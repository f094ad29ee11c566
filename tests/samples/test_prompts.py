"""Prompts and spans against the reference implementation's ids."""

import json
from functools import cache

import numpy as np
import pytest
from paths import GOLDEN, TOKENIZERS, needs_shared

from janus.prompts import PromptRow, encode_samples, unconditional
from janus.tokens import SPECIAL_NAMES, JanusTokenizer

PROMPTS = GOLDEN / "preprocessing" / "prompts.json"
CASES = json.loads(PROMPTS.read_text(encoding="utf-8")) if PROMPTS.exists() else []


@cache
def _tokenizer(name: str) -> JanusTokenizer:
    return JanusTokenizer(TOKENIZERS / name)


def _row(case: dict) -> PromptRow:
    if case["task"] == "text-multi-turn":
        texts = [text for _, text in case["messages"]]
        turns = list(zip(texts[::2], texts[1::2], strict=True))
        return PromptRow("text", *turns[-1], history=turns[:-1])
    task = case["task"].removesuffix("-unconditional")
    return PromptRow(task, case["question"], case["answer"] or "")


def _reference_ids(case: dict) -> np.ndarray:
    ids, runs = zip(*case["ids_run_length"], strict=True)
    return np.repeat(ids, runs)


@needs_shared
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['tokenizer']}-{case['task']}")
def test_ids_equal_the_reference(case: dict) -> None:
    tokenizer = _tokenizer(case["tokenizer"])
    (sample,) = encode_samples(tokenizer, [_row(case)], 576)
    ids = sample.input_ids
    if case["task"].endswith("unconditional"):
        ids = unconditional(ids, tokenizer.special)
    np.testing.assert_array_equal(ids, _reference_ids(case))
    if case["task"] in ("text", "vqa"):
        assert sample.supervised.tolist() == [[case["prompt_tokens"], case["total_tokens"]]]


@needs_shared
@pytest.mark.parametrize("name", ["janus-pro-1b", "janus-pro-7b"])
def test_spans_cover_answers_with_eos_in_every_turn(name: str) -> None:
    tokenizer = _tokenizer(name)
    row = PromptRow("vqa", "Is it normal?", "No.", history=[("What is shown?", "A chest X-ray.")])
    (sample,) = encode_samples(tokenizer, [row], 576)
    answers = [tokenizer.decode(sample.input_ids[start:end]) for start, end in sample.supervised]
    assert answers == [" A chest X-ray.<｜end▁of▁sentence｜>", " No.<｜end▁of▁sentence｜>"]
    assert (sample.input_ids == tokenizer.special.image_placeholder).sum() == 576


@needs_shared
@pytest.mark.parametrize("name", ["janus-pro-1b", "janus-pro-7b"])
def test_t2i_supervises_exactly_576_and_the_state_before_is_begin_of_image(name: str) -> None:
    tokenizer = _tokenizer(name)
    (sample,) = encode_samples(tokenizer, [PromptRow("t2i", "a red circle")], 576)
    ((start, end),) = sample.supervised
    assert end - start == 576
    assert sample.input_ids[start - 1] == tokenizer.special.begin_of_image
    assert set(sample.input_ids[start:end]) == {tokenizer.special.image_placeholder}


@needs_shared
@pytest.mark.parametrize("spelling", SPECIAL_NAMES.values())
@pytest.mark.parametrize("name", ["janus-pro-1b", "janus-pro-7b"])
def test_text_that_spells_a_special_token_stays_text(name: str, spelling: str) -> None:
    tokenizer = _tokenizer(name)
    plain, spelled = encode_samples(
        tokenizer,
        [PromptRow("text", "a", "b"), PromptRow("text", f"a{spelling}", f"b {spelling}")],
        576,
    )
    special = set(vars(tokenizer.special).values())
    assert sum(i in special for i in spelled.input_ids) == sum(i in special for i in plain.input_ids)
    (ids,) = tokenizer.encode_texts([spelling])
    assert tokenizer.decode(ids) == spelling


@needs_shared
def test_empty_answer_leaves_the_colon_last() -> None:
    tokenizer = _tokenizer("janus-pro-1b")
    (sample,) = encode_samples(tokenizer, [PromptRow("text", "Why?", "  ")], 576)
    assert tokenizer.decode(sample.input_ids).endswith("<|Assistant|>:")
    assert len(sample.supervised) == 0
