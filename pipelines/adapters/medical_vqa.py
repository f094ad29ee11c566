"""medical-vqa: conversations about a picture, in one or several turns; the picture belongs to the first.

The JSON mixes types and nests, so rows are read one by one in Python; upstream has about 14,000.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from janus.common.errors import UserError
from pipelines.adapters.raw import RawRow, RowError, find_files, printable, read_image

MARKER = "<image>"
FIELDS = ("id", "image", "conversations")


def read_medical_vqa(folder: Path) -> tuple[int, Iterator[RawRow]]:
    """Number of rows, and the rows. Their key is `id`; picture names are relative to the set's `images`.

    Upstream gives one id to several wordings of a question: the second becomes `id#2`, and so on.
    """
    tables = {path.parents[1] / "images": _load(path) for path in find_files(folder, "*/train/dataset.json")}
    seen: Counter[str] = Counter()
    rows = ((images, number, row) for images, rows in tables.items() for number, row in enumerate(rows))
    return sum(map(len, tables.values())), (_row(*row, seen) for row in rows)


def _load(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a whole JSON file ({error}); fetch it again") from error
    expected = f"expected a list of rows with {', '.join(FIELDS)}"
    if not isinstance(rows, list):
        raise UserError(f"{path}: holds {type(rows).__name__}, {expected}")
    for field in FIELDS:
        if rows and not any(isinstance(row, dict) and field in row for row in rows):
            raise UserError(f"{path}: field {field} is missing in every row, {expected}")
    return rows


def _row(images: Path, number: int, row: Any, seen: Counter[str]) -> RawRow:
    """seen: ids so far, added to."""
    key = f"row {number}"
    try:
        if not isinstance(row, dict):
            raise RowError("wrong_type", f"{type(row).__name__}, expected an object")
        key = printable(_text(row.get("id"), "id"))
        seen[key] += 1
        key = key if seen[key] == 1 else f"{key}#{seen[key]}"
        name = _text(row.get("image"), "image")
        *earlier, last = _turns(row.get("conversations"))
        history = [{"user": user, "assistant": assistant} for user, assistant in earlier]
        return RawRow(key, *last, history, read_image(images, name))
    except RowError as error:
        return RawRow(key, error=error)


def _turns(conversation: Any) -> list[tuple[str, str]]:
    """(user, assistant) texts, the picture's marker removed."""
    if not isinstance(conversation, list) or not all(isinstance(turn, dict) for turn in conversation):
        raise RowError("wrong_type", "conversations: expected a list of objects")
    speakers = [turn.get("from") for turn in conversation]
    if not speakers or speakers != ["human", "gpt"] * (len(speakers) // 2):
        raise RowError("wrong_turns", "expected human and gpt in turn")
    texts = [_text(turn.get("value"), f"conversations[{i}].value") for i, turn in enumerate(conversation)]
    if any("\0" in text for text in texts):
        raise RowError("invalid_text", "conversations: holds NUL")
    if [text.count(MARKER) for text in texts] != [1] + [0] * (len(texts) - 1):
        raise RowError("wrong_image_marker", f"expected exactly one {MARKER}, in the first human turn")
    first = texts[0].strip()
    if first.startswith(MARKER + "\n"):
        texts[0] = first.removeprefix(MARKER)
    elif first.endswith("\n" + MARKER):
        texts[0] = first.removesuffix(MARKER)
    else:
        raise RowError("wrong_image_marker", f"expected {MARKER} on the first or the last line")
    texts = [text.strip() for text in texts]
    if not all(texts[:-2]):
        raise RowError("empty_turn", "an earlier turn is empty")
    return list(zip(texts[0::2], texts[1::2], strict=True))


def _text(value: Any, field: str) -> str:
    """A string; integers are written out."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise RowError("wrong_type", f"{field} is {type(value).__name__}, expected a string")
    if printable(value) != value:
        raise RowError("invalid_text", f"{field}: not Unicode text")
    return value
