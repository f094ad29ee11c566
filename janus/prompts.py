"""The prompt layout, and which of its tokens are supervised. No other module knows either.

`{system}\\n\\n<|User|>: {user}\\n\\n<|Assistant|>: {answer}<eos>`, BOS in front. A conversation is first
written as segments, each text or special ids, supervised or not: nothing ever searches ids for a marker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

# A command's options import this for the tasks: without tokenizers, and without numpy, whose threads would
# start before the trainer has blocked Ctrl-C for them.
if TYPE_CHECKING:
    import numpy as np

    from janus.tokens import JanusTokenizer, SpecialTokens

TASKS = ("text", "vqa", "t2i")
"""Plain text, questions about an image, images from text; in the order of the shards."""
TASK_ORDER = ("vqa", "text", "t2i")
"""The order of ratios (the technical report's) and of the tasks within a step."""
SPLITS = ("train", "validation", "test")
SYSTEM_TEXT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True)
class PromptRow:
    """A conversation as text: the last user text, its answer, and earlier (user, assistant) turns."""

    task: str
    prompt: str
    answer: str = ""
    history: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class EncodedSample:
    """`input_ids`: int32 (S,). `supervised`: int32 (spans, 2), half-open spans of target positions."""

    input_ids: np.ndarray
    supervised: np.ndarray


@dataclass(frozen=True)
class Segment:
    """A run of the prompt: plain text, or special ids."""

    content: str | tuple[int, ...]
    supervised: bool = False


def prompt_segments(row: PromptRow, special: SpecialTokens, num_image_tokens: int) -> list[Segment]:
    """The whole sample as segments, in order, BOS first. Raises ValueError for an unknown task."""
    if row.task not in TASKS:
        raise ValueError(f"unknown task {row.task!r}; expected one of {', '.join(TASKS)}")
    placeholders = (special.image_placeholder,) * num_image_tokens
    if row.task == "t2i":
        segments = [Segment((special.bos, special.user)), Segment(f": {row.prompt.strip()}\n\n")]
        segments += [Segment((special.assistant,)), Segment(":"), Segment((special.begin_of_image,))]
        return [*segments, Segment(placeholders, True), Segment((special.end_of_image,))]
    image = (special.begin_of_image, *placeholders, special.end_of_image) if row.task == "vqa" else ()
    segments = [Segment((special.bos,)), Segment(SYSTEM_TEXT + "\n\n")]
    for user, answer in (*row.history, (row.prompt, row.answer)):
        question = [Segment(f": {user.strip()}\n\n")]
        if image:
            question = [Segment(": "), Segment(image), Segment(f"\n{user.strip()}\n\n")]
            image = ()  # only the first user turn has it
        segments += [Segment((special.user,)), *question, Segment((special.assistant,)), Segment(":")]
        if answer.strip():
            segments += [Segment(f" {answer.strip()}", True), Segment((special.eos,), True)]
    return segments


def encode_samples(
    tokenizer: JanusTokenizer, rows: Iterable[PromptRow], num_image_tokens: int
) -> list[EncodedSample]:
    """Ids and supervised spans of every row; one batched tokenizer call for all distinct texts."""
    samples = [prompt_segments(row, tokenizer.special, num_image_tokens) for row in rows]
    texts = list(dict.fromkeys(s.content for row in samples for s in row if isinstance(s.content, str)))
    ids_of = dict(zip(texts, tokenizer.encode_texts(texts), strict=True))
    return [_assemble(segments, ids_of) for segments in samples]


def _assemble(segments: list[Segment], ids_of: dict[str, list[int]]) -> EncodedSample:
    import numpy as np

    input_ids: list[int] = []
    spans: list[list[int]] = []
    for segment in segments:
        start, content = len(input_ids), segment.content
        input_ids.extend(ids_of[content] if isinstance(content, str) else content)
        if segment.supervised:
            if spans and spans[-1][1] == start:
                start, _ = spans.pop()
            spans.append([start, len(input_ids)])
    return EncodedSample(np.array(input_ids, np.int32), np.array(spans, np.int32).reshape(-1, 2))


def before_answer(input_ids: np.ndarray, supervised: np.ndarray) -> np.ndarray:
    """Everything before the last answer, int32 (S,): the prompt to generate from.

    input_ids, supervised: a sample's, see `EncodedSample`. For t2i the prompt ends with <begin_of_image>; a
    sample with an empty answer is all prompt.
    """
    return input_ids[: supervised[-1][0]] if len(supervised) else input_ids


def image_index(input_ids: np.ndarray, placeholder: int) -> np.ndarray:
    """Where each token reads its embedding: 0 from the text table, else 1 + its place among the image tokens.

    input_ids: int32 (…, P), images one after the other along the last axis; the same shape comes back.
    """
    shown = input_ids == placeholder
    index = shown.cumsum(-1, dtype="int32")
    index *= shown
    return index


def unconditional(input_ids: np.ndarray, special: SpecialTokens) -> np.ndarray:
    """The null prompt that guidance subtracts, in training too: BOS, pads, begin_of_image, all attended to.

    input_ids: (S,) of one t2i sample or prompt, with or without the image's placeholders.
    """
    nulled = input_ids.copy()
    begin_of_image = int((input_ids == special.begin_of_image).argmax())
    nulled[1:begin_of_image] = special.pad
    return nulled
