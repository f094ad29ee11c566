"""What `janus generate` is asked, on the command line or by a file of conversations (`--chat`).

A line of the file is {"messages": [{"role": ROLE, "content": TEXT or PARTS}, …]}, the user last. PARTS are
{"type": "text", "text": TEXT} and {"type": "image", "image": PATH}, its path relative to the file. The answer
is a text, with "draw": true a picture.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus.common.errors import UserError
from janus.prompts import Message, grouped, in_order, words_of


@dataclass(frozen=True)
class Asked:
    """One conversation up to its answer. text: of its last turn. pictures: of the messages are paths."""

    text: str
    messages: tuple[Message, ...]
    draw: bool


def read_chats(path: Path) -> list[Asked]:
    """The conversations of a file. Raises UserError naming the first line that is none, and why."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    asked = [_asked(text, f"{path}:{i}", path.parent) for i, text in enumerate(lines, 1) if text.strip()]
    if not asked:
        raise UserError(f"--chat {path}: empty, expected a conversation on each line")
    return asked


def _asked(line: str, where: str, folder: Path) -> Asked:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # a lone surrogate cannot be asked
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a line of JSON ({error})") from None
    turns, draw = (row.get("messages"), row.get("draw", False)) if isinstance(row, dict) else (None, False)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f'{where}: expected {{"messages": [{{"role": …, "content": …}}, …]}}')
    if (other := next(iter({*row} - {"id", "messages", "draw"}), None)) is not None:
        raise UserError(f"{where}: {other} is not read; pictures are parts of a message's content")
    roles = [turn.get("role") for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if spoken != ["user", *["assistant", "user"] * (len(spoken) // 2)]:
        says = ", ".join(map(str, roles)) or "none"
        raise UserError(f"{where}: expected user and assistant in turn, the user last, got {says}")
    if not isinstance(draw, bool):
        raise UserError(f"{where}: draw is {draw!r}, expected true or false")
    asked, messages = len(roles) - len(spoken), []
    for i, turn in enumerate(turns):
        place = f"{where}: messages[{i}].content"
        own = grouped(in_order(list(_parts(turn.get("content"), place, folder)), i == asked))
        if turn["role"] != "user" and any(pictures for _, pictures in own):
            raise UserError(f"{place}: only pictures of the user can be read; leave this one out")
        last = [Message(turn["role"], text, tuple(map(str, pictures))) for text, pictures in own]
        messages += last
        if not words_of(last):
            raise UserError(f"{place}: has no text")
    return Asked(words_of(last), tuple(messages), draw)


def _parts(content: Any, where: str, folder: Path) -> Iterator[str | Path]:
    """Texts and pictures in order."""
    for part in content if isinstance(content, list) else [content]:
        match part:
            case str(text) | {"type": "text", "text": str(text)}:
                yield text
            case {"type": "image", "image": str(name)} if (folder / name).is_file():
                yield folder / name
            case {"type": "image", "image": str(name)}:
                raise UserError(f"{where}: {name}: no such file; give its path from {folder}")
            case _:
                raise UserError(f"{where}: {part!r} is neither a text nor a picture with its path")
