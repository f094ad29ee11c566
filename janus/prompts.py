"""The prompt layout, and which of its tokens are supervised. No other module knows either.

`{system}\n\n<|User|>: {user}\n\n<|Assistant|>: {answer}<eos>`, BOS in front. A conversation is first
written as segments, each text or special ids, supervised or not. Ids and spans both follow from the segments,
so nothing ever searches ids for a marker.

One rule by role: a picture of the user is understood, a picture of the assistant is drawn. Supervised are the
assistant's text with its EOS, and every image token of its pictures; nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

# A command's options import this for the tasks: without tokenizers, and without numpy, whose threads would
# start before the trainer has blocked Ctrl-C for them.
if TYPE_CHECKING:
    import numpy as np

    from janus.tokens import JanusTokenizer, SpecialTokens

TASKS = ("text", "vqa", "t2i", "edit", "interleaved")
"""What a sample asks for, see `task_of`; in the order of the shards."""

TASK_ORDER = ("vqa", "text", "t2i", "edit", "interleaved")
"""The order of ratios (of the first three: the technical report's) and of the tasks within a step."""

SPLITS = ("train", "validation", "test")
SYSTEM_TEXT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content "
    "that the user provides, and assist the user with a variety of tasks using natural language."
)

TEXT, IMAGE = 0, 1
"""Kinds of supervised spans: targets of the text head, and of the image head."""


@dataclass(frozen=True)
class Message:
    """Pictures, then text, of one role: system, user or assistant. pictures: sha256 of the encoded files.

    Consecutive messages of one role are one turn, so that a picture may stand between texts.
    """

    role: str
    text: str
    pictures: Sequence[str] = ()


@dataclass(frozen=True)
class Signature:
    """What samples read and predict; it decides their graph.

    understood, drawn: pictures of the user, of the assistant. text: targets of the text head.
    """

    understood: bool
    drawn: bool
    text: bool


SIGNATURES = {
    "text": Signature(understood=False, drawn=False, text=True),
    "vqa": Signature(understood=True, drawn=False, text=True),
    "t2i": Signature(understood=False, drawn=True, text=False),
    "edit": Signature(understood=True, drawn=True, text=False),
    "interleaved": Signature(understood=True, drawn=True, text=True),
}
"""Of each task; interleaved samples may do without pictures of the user."""


@dataclass(frozen=True)
class EncodedSample:
    """`input_ids`: int32 (S,). `supervised`: int32 (spans, 3): start, end (exclusive), TEXT or IMAGE."""

    input_ids: np.ndarray
    supervised: np.ndarray


@dataclass(frozen=True)
class Segment:
    """A run of the prompt: plain `text`, or special `ids` where text is None. kind: TEXT, IMAGE or None."""

    text: str | None = None
    ids: tuple[int, ...] = ()
    kind: int | None = None


def task_of(messages: Sequence[Message]) -> str:
    """The task of a conversation, from who shows pictures.

    text: nobody. vqa: the user. t2i: the assistant, who says nothing. edit: both, and the assistant says
    nothing. interleaved: the assistant, who also writes.
    """
    shown = any(message.pictures for message in messages if message.role == "user")
    answers = [message for message in messages if message.role == "assistant"]
    if not any(message.pictures for message in answers):
        return "vqa" if shown else "text"
    if any(message.text.strip() for message in answers):
        return "interleaved"
    return "edit" if shown else "t2i"


def turns_of(messages: Iterable[Any]) -> list[tuple[str, list[Any]]]:
    """(role, its messages) of each turn. messages: whatever has a role."""
    return [(role, list(own)) for role, own in groupby(messages, lambda message: message.role)]


def words_of(turn: Iterable[Message]) -> str:
    """What a turn says, its texts joined."""
    return " ".join(message.text for message in turn if message.text)


def in_order(parts: Sequence[Any], first: bool) -> list[Any]:
    """Texts and pictures of a turn, stripped, without empty texts; what is no text is a picture.

    first: of the first user turn; there one picture at the end goes in front, where Janus expects it.
    """
    stripped = [part.strip() if isinstance(part, str) else part for part in parts]
    kept = [part for part in stripped if part != ""]
    pictures = [part for part in kept if not isinstance(part, str)]
    return [kept[-1], *kept[:-1]] if first and len(pictures) == 1 and kept[-1] is pictures[0] else kept


def grouped(parts: Iterable[Any]) -> list[tuple[str, tuple[Any, ...]]]:
    """(text, the pictures before it) of each message of a turn, at least of one; see `Message`."""
    messages: list[tuple[str, tuple[Any, ...]]] = []
    pictures: list[Any] = []
    for part in parts:
        if isinstance(part, str):
            messages.append((part, tuple(pictures)))
            pictures = []
        else:
            pictures.append(part)
    return [*messages, ("", tuple(pictures))] if pictures or not messages else messages


def prompt_segments(
    messages: Sequence[Message], special: SpecialTokens, num_image_tokens: int, train_begin: bool = False
) -> list[Segment]:
    """The whole sample as segments, in order, BOS first.

    A system message is the system text; without one it is Janus-Pro's, and none if the assistant only draws.
    train_begin: in interleaved samples begin_of_image of a drawn picture is a target of the text head.
    """
    turns = turns_of(messages)
    task = task_of(messages)
    system = "" if task in ("t2i", "edit") else SYSTEM_TEXT
    if turns[0][0] == "system":
        system = "\n".join(message.text for message in turns.pop(0)[1]).strip()
    segments = [Segment(ids=(special.bos,)), *([Segment(system + "\n\n")] if system else [])]
    begin = Segment(ids=(special.begin_of_image,))
    placeholders, end = (special.image_placeholder,) * num_image_tokens, Segment(ids=(special.end_of_image,))
    shown, drawn = (
        [begin, Segment(ids=placeholders), end],
        [begin, Segment(ids=placeholders, kind=IMAGE), end],
    )
    if task == "interleaved" and train_begin:
        drawn[0] = Segment(ids=begin.ids, kind=TEXT)
    for number, (role, own) in enumerate(turns, 1):
        items = _items(own)
        if role == "user":
            segments += [Segment(ids=(special.user,)), *_turn(items, ": ", "\n\n", shown)]
            continue
        words = TEXT if any(items) else None
        segments += [Segment(ids=(special.assistant,)), Segment(":")]
        segments += _turn(items, " " if items and items[0] else "", "", drawn, words)
        if words is not None or (items and number < len(turns)):
            segments.append(Segment(ids=(special.eos,), kind=words))
    return segments


def _items(messages: Iterable[Message]) -> list[str]:
    """Texts and pictures of a turn in order, a picture as an empty text."""
    return [
        item
        for message in messages
        for item in (*[""] * len(message.pictures), *filter(None, [message.text.strip()]))
    ]


def _turn(
    items: Sequence[str], text: str, tail: str, picture: list[Segment], kind: int | None = None
) -> list[Segment]:
    """One turn as transformers' chat template lays it out: a line break between a picture and its neighbour.

    text, tail: what begins and ends it. picture: the segments of each. kind: of the texts.
    """
    segments = []
    for place, item in enumerate(items):
        after_text = place > 0 and bool(items[place - 1])
        text += f" {item}" if item and after_text else item
        if item:
            continue
        text += "\n" if place else ""
        segments += [*([Segment(text, kind=kind)] if text else []), *picture]
        text = "\n" if place + 1 < len(items) else ""
    return [*segments, *([Segment(text + tail, kind=kind)] if text + tail else [])]


def encode_samples(
    tokenizer: JanusTokenizer,
    conversations: Iterable[Sequence[Message]],
    num_image_tokens: int,
    train_begin: bool = False,
) -> list[EncodedSample]:
    """Ids and supervised spans of every conversation; one batched tokenizer call for all distinct texts."""
    samples = [
        prompt_segments(messages, tokenizer.special, num_image_tokens, train_begin)
        for messages in conversations
    ]
    texts = list(dict.fromkeys(s.text for segments in samples for s in segments if s.text is not None))
    ids_of = dict(zip(texts, tokenizer.encode_texts(texts), strict=True))
    return [_assemble(segments, ids_of) for segments in samples]


def _assemble(segments: list[Segment], ids_of: dict[str, list[int]]) -> EncodedSample:
    import numpy as np

    input_ids: list[int] = []
    spans: list[list[int]] = []
    for segment in segments:
        start = len(input_ids)
        input_ids.extend(segment.ids if segment.text is None else ids_of[segment.text])
        if segment.kind is None or start == len(input_ids):  # a line break may be no token
            continue
        if spans and spans[-1][1:] == [start, segment.kind]:
            spans[-1][1] = len(input_ids)
        else:
            spans.append([start, len(input_ids), segment.kind])
    return EncodedSample(np.array(input_ids, np.int32), np.array(spans, np.int32).reshape(-1, 3))


def before_answer(input_ids: np.ndarray, supervised: np.ndarray, special: SpecialTokens) -> np.ndarray:
    """Everything before the last answer, int32 (S,): the prompt to generate from.

    input_ids, supervised: a sample's, see `EncodedSample`. Where the assistant draws first, the prompt ends
    with <begin_of_image>; a sample with an empty answer is all prompt.
    """
    last = int((input_ids == special.assistant).nonzero()[0][-1])
    starts = supervised[supervised[:, 0] > last, 0]
    return input_ids[: starts[0]] if len(starts) else input_ids


def image_index(shown: np.ndarray, drawn: np.ndarray | None = None, first_drawn: int = 0) -> np.ndarray:
    """Where each token reads its embedding: 0 from the text table, else 1 + its place among the image tokens.

    shown, drawn: whether a token is of an understood, of a drawn picture, bool (…, P), pictures one after
    the other along the last axis; the same shape comes back, int32. first_drawn: the place of the first drawn
    token, behind those of all understood pictures.
    """
    index = shown.cumsum(-1, dtype="int32")
    index *= shown
    if drawn is not None:
        index += (drawn.cumsum(-1, dtype="int32") + first_drawn) * drawn
    return index


def unconditional(
    input_ids: np.ndarray, special: SpecialTokens, supervised: np.ndarray | None = None
) -> np.ndarray:
    """The null prompt that classifier-free guidance subtracts: before the last picture, text becomes pad.

    input_ids: (S,) of one sample or prompt that draws. Training and sampling both use it. BOS, the pictures
    before (with their begin_of_image and end_of_image) and `supervised` spans stay, so guidance
    strengthens what the words ask for, not what an edited picture shows. All pads are attended to.
    """
    begins, ends = input_ids == special.begin_of_image, input_ids == special.end_of_image
    nulled = begins.cumsum() - ends.cumsum() + ends == 0
    nulled[0] = False
    nulled[begins.nonzero()[0][-1] :] = False
    for start, end, _ in [] if supervised is None else supervised.tolist():
        nulled[start:end] = False
    ids = input_ids.copy()
    ids[nulled] = special.pad
    return ids
