"""The dialects of turns: `messages` (`role`, `content`), `conversations` (`from`, `value`), and `query`.

Content is a text, whose `<image>` marks stand for the pictures of the column `images`, or a list of parts.
`query` has a column for each text: `query`, `response`, `history`, or `instruction`, `input`, `output`.
"""

from collections.abc import Mapping
from typing import Any

from pipelines.forms.pictures import Picture, RowError
from pipelines.forms.row import Part, Place, Turn, marked, text_of

ROLES = {"human": "user", "gpt": "assistant"}
"""Other names of roles."""


def conversation(value: Any, field: str, root: Any, marks: bool) -> list[Turn]:
    """The turns of a column. root: where the paths of pictures start. Raises RowError."""
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise RowError("wrong_type", f"{field}: expected a list of objects")
    return [_turn(item, f"{field}[{i}]", root, marks) for i, item in enumerate(value)]


def _turn(item: Mapping[str, Any], field: str, root: Any, marks: bool) -> Turn:
    role, content = (_first(item, *names) for names in (("role", "from"), ("content", "value")))
    role = text_of(role, f"{field}.role")
    if isinstance(content, list):
        parts = tuple(_part(part, f"{field}.content[{i}]", root) for i, part in enumerate(content))
    else:
        parts = marked(text_of(content, f"{field}.content"), marks)
    return Turn(ROLES.get(role, role), parts)


def _part(part: Any, field: str, root: Any) -> Part:
    """A text or a picture. One that names no picture stands for the next of `images`."""
    if not isinstance(part, Mapping):
        raise RowError("wrong_type", f"{field} is {type(part).__name__}, expected an object with its type")
    kind = part.get("type") or ("text" if part.get("text") is not None else "image")
    if kind == "text":
        return text_of(part.get("text"), f"{field}.text")
    if kind not in ("image", "image_url"):
        raise RowError("wrong_type", f"{field}.type is {kind!r}, expected text or image")
    value = _first(part, "image", "path", "image_url", "url", "bytes")
    return Place.NEXT if value is None else Picture(value, root)


def _first(fields: Mapping[str, Any], *names: str) -> Any:
    """The first of these that is given and not null."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def query(fields: Mapping[str, Any], marks: bool) -> list[Turn]:
    """History, if there is any, then question and answer. Raises RowError."""
    texts = [
        (f"history[{i}][{side}]", text)
        for i, pair in enumerate(_pairs(fields.get("history")))
        for side, text in enumerate(pair)
    ]
    asked, answered = ("query", "response") if "query" in fields else ("instruction", "output")
    question = text_of(fields.get(asked), asked)
    if asked == "instruction" and (more := text_of(fields.get("input"), "input")):
        question = f"{question}\n{more}"
    texts += [(asked, question), (answered, fields.get(answered))]
    parts = [marked(text_of(text, field), marks) for field, text in texts]
    return [Turn(("user", "assistant")[i % 2], own) for i, own in enumerate(parts)]


def _pairs(history: Any) -> list[list[Any]]:
    pairs = [] if history is None else history
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise RowError("wrong_type", "history: expected a list of [query, response]")
    return pairs
