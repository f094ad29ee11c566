"""A source's rows: which form each of its files is of, and the records as turns."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import click

from janus.common.errors import UserError
from pipelines.forms.captions import CAPTIONS, PICTURES, captions, picture_and_caption
from pipelines.forms.conversation import conversation, query
from pipelines.forms.files import column_names, count_rows, paths_of, read_records, split_of
from pipelines.forms.pictures import Picture, RowError, printable
from pipelines.forms.plugin import read_plugin
from pipelines.forms.row import Place, RawRow, Record, Turn, fill_marks, text_of
from pipelines.forms.webdataset import ONLY
from pipelines.sources import Source

Names = Collection[str]

DIALECTS: dict[str, Callable[[Names], bool]] = {
    "messages": lambda names: "messages" in names,
    "conversations": lambda names: "conversations" in names,
    "query": lambda names: {"query", "response"} <= {*names} or {"instruction", "output"} <= {*names},
    "captions": lambda names: picture_and_caption(names) is not None,
}
"""Dialect → whether columns of these names make rows of it. The first that says so counts."""

NEEDS = {
    "query": "query and response, or instruction and output",
    "captions": f"a picture ({', '.join(PICTURES)}) and a caption ({', '.join(CAPTIONS)})",
}

GLANCE = 64
"""Records by which a file's form is found."""


@dataclass(frozen=True)
class Reading:
    """The rows of a source. count: roughly how many; None where only reading tells."""

    count: int | None
    rows: Iterator[RawRow]


def read_source(
    root: Path, source: Source, starts: Mapping[str, int] | None = None, keys: Collection[str] = ()
) -> Reading:
    """Open a source. root: what its folder is relative to. Raises UserError, also while rows are read.

    starts: the files to read (absolute) and the byte to begin at; None: all. keys: of rows read before.
    """
    base = root / source.folder
    places = dict.fromkeys(paths_of(base, source), 0)
    if starts is not None:
        places = {path: starts[name] for path in places if (name := str(path.absolute())) in starts}
    if (base / source.path).is_dir():
        base /= source.path
    counts = [None if source.is_plugin or start else count_rows(path) for path, start in places.items()]
    known = [count for count in counts if count is not None]
    count = sum(known) if len(known) == len(counts) else None
    return Reading(
        count, _numbered(_rows(root, base, places, source), source, keys if source.number_ids else ())
    )


def _rows(root: Path, base: Path, places: Mapping[Path, int], source: Source) -> Iterator[RawRow]:
    for path, start in places.items():
        folder = path if path.is_dir() else path.parent
        pictures = folder / source.images if isinstance(source.images, str) else folder
        label = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
        label = "" if path.is_dir() else f"{label}:"
        split = split_of(path, source)
        if source.is_plugin:
            click.echo(f"{source.name}: {Path(str(source.form)).name} reads {label.rstrip(':') or path}")
            rows = read_plugin(root / str(source.form), path, pictures, label)
        else:
            rows = _read_file(path, start, label, pictures, source)
        yield from rows if split is None else (replace(row, split=split) for row in rows)


def _numbered(rows: Iterator[RawRow], source: Source, keys: Collection[str]) -> Iterator[RawRow]:
    """The rows; with `number_ids` the second of a key has `key#2`, and so on. keys: of rows before."""
    seen: Counter[str | None] = Counter(keys)
    for key in keys:
        first, _, number = key.rpartition("#")
        if first and number.isdecimal() and len(number) < 10:
            seen[first] = max(seen[first], int(number))
    for row in rows:
        seen[row.key] += source.number_ids
        yield row if seen[row.key] < 2 else replace(row, key=f"{row.key}#{seen[row.key]}")


def _read_file(path: Path, start: int, label: str, pictures: Path, source: Source) -> Iterator[RawRow]:
    records = _read_renamed(path, source)
    head = list(islice(records, GLANCE))
    form = _find_form(path, head, source)
    if source.dialect is None:
        click.echo(f"{source.name}: {label.rstrip(':') or path} is of form {form}")
    records = _read_renamed(path, source, start) if start else chain(head, records)
    return (_raw_row(record, form, label, pictures, source) for record in records)


def _read_renamed(path: Path, source: Source, start: int = 0) -> Iterator[Record]:
    records = read_records(path, source, start)
    if not source.columns:
        return records
    return (replace(record, fields=_renamed(record.fields, source)) for record in records)


def _renamed(fields: Mapping[str, Any] | None, source: Source) -> Mapping[str, Any] | None:
    if fields is None:
        return None
    theirs = set(source.columns.values())
    kept = {name: value for name, value in fields.items() if name not in theirs}
    return kept | {our: fields[their] for our, their in source.columns.items() if their in fields}


def form_of(names: Names) -> str | None:
    """The dialect of a row with these columns, None if none knows them."""
    return next((form for form, knows in DIALECTS.items() if knows(names)), None)


def _given(record: Record) -> set[str]:
    return {name for name, value in (record.fields or {}).items() if value is not None}


def _find_form(path: Path, head: list[Record], source: Source) -> str:
    """The dialect of a file. Raises UserError if it is not the source's, or none."""
    names = {str(name) for record in head for name in record.fields or ()}
    if (declared := column_names(path)) is not None:  # and there may be no rows
        names = {*(_renamed(dict.fromkeys(declared), source) or ())}
    elif head and not names:
        reason = ": ".join(filter(None, head[0].error.args)) if head[0].error else "no columns"
        raise UserError(f"{path}: none of its first {len(head)} rows can be read ({reason}); is it UTF-8?")
    here = f"columns here: {', '.join(sorted(map(printable, names)))[:300]}"
    for our, their in source.columns.items() if names else ():
        if our not in names:
            raise UserError(f"{path}: column {their} is missing, expected UTF-8 with it as {our}; {here}")
    found = source.dialect or next((form for r in head if (form := form_of(_given(r)))), form_of(names))
    if found is None:
        raise UserError(f"{path}: of no known form; {here}; rename them with `columns:`, or write a plug-in")
    if source.question and found != "captions":
        raise UserError(f"{path}: `as: vqa` is for captions, and this is of form {found}; {here}")
    if names and not DIALECTS[found](names):
        raise UserError(f"{path}: not of form {found}, which needs {NEEDS.get(found, found)}; {here}")
    return found


def _raw_row(record: Record, form: str, label: str, pictures: Path, source: Source) -> RawRow:
    key: str | None = f"{label}{record.number}"
    try:
        if record.fields is not None:
            key = _key(record.fields, key, source)
        if record.error or record.fields is None:
            raise record.error or RowError("not_json")
        given = _given(record)
        if (other := form_of(given)) and not DIALECTS[form](given):
            raise RowError("other_form", f"columns of {other} in a file of {form}")
        return RawRow(key, _turns(record, form, pictures, source))
    except RowError as error:
        return RawRow(key, error=error)


def _key(fields: Mapping[str, Any], place: str | None, source: Source) -> str | None:
    """The column `id`, else the place. A picture's path as id is written without `./`."""
    if fields.get("id") is None:
        return None if "id" in source.columns else place
    key = printable(text_of(fields["id"], "id"))
    if not key.strip():
        return None
    return key.removeprefix("./") if source.columns.get("id") == source.columns.get("image", "") else key


def _turns(record: Record, form: str, pictures: Path, source: Source) -> tuple[Turn, ...]:
    fields, root = record.fields or {}, pictures if record.members is None else record.members
    marks = source.images is not False
    if form == "captions":
        turns, images = captions(fields, root, source.question), []
    else:
        images = [Picture(value, root) for value in _images(fields)]
        turns = query(fields, marks) if form == "query" else conversation(fields.get(form), form, root, marks)
        if record.members and not images and any(Place.NEXT in turn.parts for turn in turns):
            images = [Picture(fields.get(ONLY), root)]
    if system := text_of(fields.get("system"), "system"):
        turns = [Turn("system", (system,)), *turns]
    return fill_marks(turns, images)


def _images(fields: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row's own column, `images` or `image`. Raises RowError if both are given."""
    given = [fields[name] for name in ("images", "image") if fields.get(name) is not None]
    if len(given) > 1:
        raise RowError("wrong_type", "images and image are both given")
    return [item for value in given for item in (value if isinstance(value, list) else [value])]
