"""Rules that hold for every source: turns as a form read them → the messages of a usable row, or a reason.

Turns alternate, a system text at most comes first, the assistant speaks last. Texts are stripped; a turn that
says and shows nothing is rejected, as is one whose pictures cannot be read.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from janus.prompts import Message, grouped, in_order, task_of, turns_of, words_of
from pipelines.forms.pictures import Picture, RowError, is_unicode
from pipelines.forms.row import RawRow, Turn
from pipelines.sources import Source
from pipelines.tables import KIND_OF

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Piece:
    """A `Message` whose pictures have not been read."""

    role: str
    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Checked:
    """A usable row in the columns of ROW_SCHEMA, and its new pictures: kind, sha256, bytes."""

    row: dict[str, Any]
    pictures: list[tuple[str, str, bytes]]


@dataclass
class Checker:
    """What rows before have taken: keys of a source, pictures of all."""

    stored: dict[str, set[str]] = field(default_factory=lambda: {kind: set() for kind in KIND_OF.values()})
    keys: set[str] = field(default_factory=set)
    _hashes: dict[Path, str] = field(default_factory=dict)

    def check(self, raw: RawRow, source: Source) -> Checked:
        """The row. Raises RowError with the first reason against it."""
        if raw.error:
            raise raw.error
        key = checked_text(raw.key or "", "id")
        check_turns(raw.turns)
        pieces = pieces_of(raw.turns)
        tag = task_of([Message(p.role, p.text, ("",) * len(p.pictures)) for p in pieces])
        if source.tags and tag not in source.tags:
            raise RowError("tag_filtered", tag)
        check_empty(pieces, tag)
        read = [[self._read(picture, KIND_OF[p.role]) for picture in p.pictures] for p in pieces]
        if raw.key is None:
            raise RowError("no_key")
        if key in self.keys:
            raise RowError("duplicate_id")
        self.keys.add(key)
        messages = [
            Message(p.role, p.text, tuple(h for h, _ in r)) for p, r in zip(pieces, read, strict=True)
        ]
        row = row_of(messages, tag) | {"source": source.name, "source_key": key, "split": raw.split}
        return Checked(row, list(self._new(pieces, read)))

    def _read(self, picture: Picture, kind: str) -> tuple[str, bytes | None]:
        """sha256 of a picture, and its bytes unless they are stored."""
        path = picture.path
        if path and self._hashes.get(path) in self.stored[kind]:
            return self._hashes[path], None
        data = picture.read()
        sha256 = hashlib.sha256(data).hexdigest()
        if path:
            self._hashes[path] = sha256
        return sha256, data

    def _new(self, pieces: list[Piece], read: list[list[tuple[str, bytes | None]]]) -> Iterable[Any]:
        for piece, pictures in zip(pieces, read, strict=True):
            kind = KIND_OF.get(piece.role, "")
            for sha256, data in pictures:
                if data is not None and sha256 not in self.stored[kind]:
                    self.stored[kind].add(sha256)
                    yield kind, sha256, data


def check_turns(turns: Sequence[Turn]) -> None:
    """Raises RowError unless roles are known and alternate, from a user's turn to an assistant's."""
    for i, turn in enumerate(turns):
        if turn.role not in ROLES:
            raise RowError("unknown_role", f"turn {i + 1}: {turn.role[:60]!r}, expected {', '.join(ROLES)}")
        for part in turn.parts:
            if isinstance(part, str):
                checked_text(part, f"turn {i + 1}")
            elif turn.role == "system":
                raise RowError("system_picture", f"turn {i + 1}")
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if spoken[:1] == ["assistant"]:
        raise RowError("assistant_first")
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise RowError(
            "wrong_turns", f"expected user and assistant in turn, got {', '.join(roles)[:200] or 'none'}"
        )


def checked_text(text: str, where: str) -> str:
    """The text. Raises RowError if it is not UTF-8 or holds NUL, a sign of damage."""
    if "\0" in text:
        raise RowError("invalid_text", f"{where}: holds NUL")
    if not is_unicode(text):
        raise RowError("invalid_text", f"{where}: not UTF-8")
    return text


def pieces_of(turns: Iterable[Turn]) -> list[Piece]:
    """The turns as messages."""
    pieces, first = [], True
    for turn in turns:
        parts = in_order(turn.parts, first and turn.role == "user")
        first = first and turn.role != "user"
        if parts or turn.role != "system":  # an empty system text is none
            pieces += [Piece(turn.role, *message) for message in grouped(parts)]
    return pieces


def check_empty(pieces: Sequence[Piece], tag: str) -> None:
    """Raises RowError for a turn without text and picture, and for a last user turn without text."""
    turns = [own for role, own in turns_of(pieces) if role != "system"]
    empty = [not any(piece.text or piece.pictures for piece in turn) for turn in turns]
    if any(empty[:-2]):
        raise RowError("empty_turn", f"turn {empty.index(True) + 1}")
    if empty[-2] or (tag != "interleaved" and not any(piece.text for piece in turns[-2])):
        raise RowError("empty_caption" if tag == "t2i" else "empty_question")
    if empty[-1]:
        raise RowError("empty_answer")


def row_of(messages: Sequence[Message], tag: str) -> dict[str, Any]:
    """The columns of ROW_SCHEMA that follow from the conversation. sha256: of roles, texts and pictures."""
    content = [[message.role, message.text, list(message.pictures)] for message in messages]
    *_, (_, user), (_, assistant) = turns_of(messages)
    return {
        "task": tag,
        "messages": [dict(zip(("role", "text", "pictures"), one, strict=True)) for one in content],
        "prompt": words_of(user),
        "answer": words_of(assistant),
        "sha256": hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest(),
    }
