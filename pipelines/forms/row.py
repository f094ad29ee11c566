"""A row as a form reads it: turns of texts and pictures, nothing checked that holds for every form."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pipelines.forms.pictures import Members, Picture, RowError

MARK = "<image>"
"""Stands in a text where a picture of the column `images` belongs."""

MAX_ROW = 1 << 26
"""Bytes of a line, of a CSV field, of an array's element: a longer one is rejected without being read."""


class Place(Enum):
    """A part of a turn: the next picture of the column `images`."""

    NEXT = MARK


Part = str | Picture | Place


@dataclass(frozen=True)
class Turn:
    """What one side says and shows before the other side does, in order. Texts are not stripped."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class RawRow:
    """A row as a form reads it."""

    key: str | None  # None: the column that was named as `id` holds nothing
    turns: tuple[Turn, ...] = ()
    split: str | None = None
    error: RowError | None = None  # why the row is rejected


@dataclass(frozen=True)
class Record:
    """Columns of a row, or why it has none."""

    number: int | str  # its line, its place in the file from 1, or its name there
    fields: Mapping[str, Any] | None = None
    error: RowError | None = None
    members: Members | None = None  # of a tar: pictures beside the row, by suffix and by whole name


Records = Iterator[Record]


def text_of(value: Any, field: str) -> str:
    """A string; integers are written out, None is empty. Raises RowError for other types."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{field} is {type(value).__name__}, expected a string")
    return value


def marked(text: str, marks: bool = True) -> tuple[Part, ...]:
    """The text around its `<image>` marks. marks: False takes them for text."""
    if not marks:
        return (text,)
    first, *others = text.split(MARK)
    return (first, *(part for other in others for part in (Place.NEXT, other)))


def fill_marks(turns: list[Turn], pictures: list[Picture]) -> tuple[Turn, ...]:
    """The turns with a picture for every mark. Raises RowError if there are more of one than of the other."""
    marks = sum(part is Place.NEXT for turn in turns for part in turn.parts)
    if marks != len(pictures):
        raise RowError("image_count", f"{marks} {MARK} marks, {len(pictures)} pictures")
    left = iter(pictures)
    return tuple(
        Turn(turn.role, tuple(next(left) if part is Place.NEXT else part for part in turn.parts))
        for turn in turns
    )
