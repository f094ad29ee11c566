"""What holds for any text: labels are answer and EOS, ids are in the table."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import TOKENIZERS
from trainer_shards import TOKENS

from janus.prompts import SYSTEM_TEXT, PromptRow, encode_samples, unconditional
from janus.tokens import SPECIAL_NAMES, JanusTokenizer

SPELLINGS = [*SPECIAL_NAMES.values(), "<image>", "<|System|>", "<|endoftext|>", "</s>", "[PAD]", "<0x00>"]
PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(SPELLINGS),
    st.sampled_from(
        ["\n\n", ": ", " ", "\u202e", "\u0301" * 9, "\u200b", "\0", "猫", "\U0001f469\u200d", "x" * 99]
    ),
)
TEXT = st.lists(PIECES, max_size=8).map("".join)
SAID = TEXT.filter(str.strip)
ROW = st.one_of(
    st.builds(
        PromptRow, st.sampled_from(["text", "vqa"]), SAID, SAID, st.lists(st.tuples(SAID, SAID), max_size=2)
    ),
    st.builds(PromptRow, st.just("t2i"), SAID),
)
SLOW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@cache
def tokenizer(name: str) -> JanusTokenizer:
    """The embedded sample's, of bytes, or a published one."""
    if name != "sample":
        return JanusTokenizer(TOKENIZERS / name)
    from pipelines.sample import write_sample

    with TemporaryDirectory() as folder:
        write_sample(Path(folder) / "data", 0)
        return JanusTokenizer(Path(folder) / "data" / "tokenizer")


def published(name: str) -> object:
    here = (TOKENIZERS / name).is_dir()
    return pytest.param(
        name,
        marks=[pytest.mark.slow, pytest.mark.skipif(not here, reason=f"{TOKENIZERS / name} is not there")],
    )


@pytest.mark.parametrize("name", ["sample", published("janus-pro-1b"), published("janus-pro-7b")])
@SLOW
@given(rows=st.lists(ROW, min_size=1, max_size=5))
def test_any_text_gives_a_sample_whose_labels_are_answer_and_eos(name: str, rows: list[PromptRow]) -> None:
    """Whatever a text spells and is batched with, no span moves and nothing becomes a special token."""
    opened = tokenizer(name)
    special = {getattr(opened.special, field) for field in SPECIAL_NAMES}
    together = encode_samples(opened, rows, TOKENS)
    for row, sample in zip(rows, together, strict=True):
        (single,) = encode_samples(opened, [row], TOKENS)
        assert np.array_equal(single.input_ids, sample.input_ids)
        ids = sample.input_ids.tolist()
        assert min(ids) >= 0
        assert max(ids) <= opened.highest_id
        structure = [i for i in ids if i in special]
        turns = [*row.history, (row.prompt, row.answer)]
        image = [
            opened.special.begin_of_image,
            *[opened.special.image_placeholder] * TOKENS,
            opened.special.end_of_image,
        ]
        if row.task == "t2i":
            assert structure == [opened.special.bos, opened.special.user, opened.special.assistant, *image]
            (span,) = sample.supervised.tolist()
            assert ids[slice(*span)] == image[1:-1]
            nulled = unconditional(sample.input_ids, opened.special)
            assert nulled.tolist() == [ids[0], *[opened.special.pad] * (span[0] - 2), *ids[span[0] - 1 :]]
            continue
        expected = [opened.special.bos]
        for number, _ in enumerate(turns):
            shown = image if row.task == "vqa" and number == 0 else []
            expected += [opened.special.user, *shown, opened.special.assistant, opened.special.eos]
        assert structure == expected
        answers = [ids[start:end] for start, end in sample.supervised.tolist()]
        assert [a[-1] for a in answers] == [opened.special.eos] * len(turns)
        texts = [" " + answer.strip() for _, answer in turns]
        assert [a[:-1] for a in answers] == opened.encode_texts(texts)
        if name == "sample":  # in the published ones some letters (õ in 7B) decode to a byte
            assert [opened.decode(a[:-1]) for a in answers] == texts
        assert opened.decode(ids[1:]).startswith(SYSTEM_TEXT)
