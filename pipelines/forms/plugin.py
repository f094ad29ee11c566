"""A plug-in: a user's Python file with `rows(path) -> Iterator[Row]`, for data of no known form.

    from pathlib import Path
    from pipelines.forms.plugin import Row

    def rows(path):
        for line in path.read_text().splitlines():
            name, words = line.split("|")
            yield Row(
                [("user", "What is it?", [Path(name)]), ("assistant", words)],
                key=name,
            )

A message is (role, text) or (role, text, pictures). Roles are `system`, `user` and `assistant`; pictures
stand before the text, as bytes, paths relative to the data file (or to `images:`) or data URIs. Messages of
one role that follow each other are one turn. `key` names the row in rejects and shards; without it the
row's number does. `path` is each file of the source's `path`, or the folder.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from runpy import run_path
from typing import Any

from janus.common.errors import UserError
from pipelines.forms.pictures import Picture, RowError
from pipelines.forms.row import RawRow, Turn, text_of


@dataclass(frozen=True)
class Row:
    """A conversation, as a plug-in gives it."""

    messages: Sequence[tuple[Any, ...]]
    key: str | None = None


def read_plugin(code: Path, path: Path, root: Path, label: str) -> Iterator[RawRow]:
    """The rows that the plug-in `code` finds in `path`. Raises UserError for whatever it raises."""
    number = 0
    try:
        for number, row in enumerate(_function(code)(path), 1):
            yield _raw_row(row, f"{label}{number}", root)
    except Exception as error:
        if isinstance(error, UserError):
            raise
        what = " ".join(str(error).split())
        raise UserError(
            f"{code}: rows({path.name!r}) failed after row {number}: {type(error).__name__}: {what}"
        ) from error


def _function(code: Path) -> Callable[[Path], Iterator[Row]]:
    if not code.is_file():
        raise UserError(f"{code}: no such plug-in; `form:` is its path relative to sources.yaml")
    found = run_path(str(code)).get("rows")
    if not callable(found):
        raise UserError(f"{code}: defines no function rows(path)")
    return found


def _raw_row(row: Any, label: str, root: Path) -> RawRow:
    if not isinstance(row, Row):
        return RawRow(label, error=RowError("wrong_type", f"{type(row).__name__}, expected Row"))
    key = label if row.key is None else str(row.key)
    try:
        messages = [(role, _parts(text, *pictures, root=root)) for role, text, *pictures in row.messages]
        groups = groupby(messages, lambda message: message[0])
        turns = (Turn(str(role), tuple(part for _, parts in own for part in parts)) for role, own in groups)
        return RawRow(key, tuple(turns))
    except RowError as error:
        return RawRow(key, error=error)
    except (TypeError, ValueError) as error:
        return RawRow(
            key, error=RowError("wrong_type", f"messages: expected (role, text, pictures) ({error})")
        )


def _parts(text: Any, pictures: Sequence[Any] = (), *, root: Path) -> tuple[Any, ...]:
    if isinstance(pictures, str | bytes):
        raise RowError("wrong_type", "pictures: expected a list")
    return (*(Picture(picture, root) for picture in pictures), text_of(text, "text"))
