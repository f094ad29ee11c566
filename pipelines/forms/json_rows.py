"""Records of JSON files: lines, or an array. Each is read a piece at a time.

A bad line or element rejects its row. Bytes that are not UTF-8 become lone surrogates, which ingest finds.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from janus.common.errors import UserError
from pipelines.forms.pictures import RowError
from pipelines.forms.row import MAX_ROW, Record, Records

PIECE = 1 << 20
"""Characters of a JSON array that are read at a time."""

HEAD = 1 << 16
"""Bytes in which the first that is no blank must be."""


class _DuplicateKeys(ValueError):
    """Its arg is the key."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeys(next(name for name in names if names.count(name) > 1))
    return fields


_STRICT = json.JSONDecoder(object_pairs_hook=_object)
_PLAIN = json.JSONDecoder()


def read_json(path: Path, start: int = 0) -> Records:
    """Elements of an array, or lines that are one object each, whatever the file is called.

    start: the byte where lines begin that have not been read before.
    """
    if not (first := _first(path)):
        raise UserError(f"{path}: empty, expected a JSON array or a row on each line; fetch it again")
    return _array(path) if first == b"[" else _lines(path, start)


def _first(path: Path) -> bytes:
    """The first byte that is no blank."""
    with path.open("rb") as file:
        return file.read(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def hash_lines(path: Path, size: int) -> str | None:
    """sha256 of the first `size` bytes; None in an array, or where a line goes on behind them."""
    digest, piece = hashlib.sha256(), b""
    with path.open("rb") as file:
        for piece in _head(file, size):
            digest.update(piece)
        ends = piece.endswith(b"\n") or file.read(1) in (b"", b"\r", b"\n")
    return digest.hexdigest() if ends and _first(path) != b"[" else None


def _head(file: IO[bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes, in pieces."""
    while piece := file.read(min(PIECE, size)):
        size -= len(piece)
        yield piece


def json_record(number: int | str, text: str) -> Record:
    """The record that a text holds as one JSON object."""
    try:
        value = _STRICT.decode(text)
    except _DuplicateKeys as error:
        return _twice(number, error)
    except RecursionError:
        return Record(number, error=RowError("not_json", "nested too deeply"))
    except ValueError as error:
        return Record(number, error=RowError("not_json", str(error)))
    return _record(number, value)


def _twice(number: int | str, error: _DuplicateKeys) -> Record:
    return Record(number, error=RowError("duplicate_keys", f"{error} is given twice"))


def _record(number: int | str, value: Any) -> Record:
    if isinstance(value, dict):
        return Record(number, value)
    return Record(number, error=RowError("wrong_type", f"{type(value).__name__}, expected an object"))


def _lines(path: Path, start: int) -> Records:
    with path.open("rb", buffering=PIECE) as file:
        number = sum(piece.count(b"\n") for piece in _head(file, start))
        while line := file.readline(MAX_ROW + 1):
            number += 1
            if len(line) > MAX_ROW:
                while not line.endswith(b"\n") and line:
                    line = file.readline(PIECE)
                yield Record(number, error=RowError("line_too_long", f"more than {MAX_ROW} bytes"))
            elif line := line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip():
                yield json_record(number, line.decode(errors="surrogateescape"))


def _array(path: Path) -> Records:
    """The elements, decoded from a buffer that slides over the file: memory does not grow with it."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        buffer = _Buffer(path, file)
        buffer.skip("[")
        number = 0
        while buffer.peek() != "]":
            if number:
                buffer.skip(",")
            number += 1
            yield buffer.element(number)
        buffer.skip("]")
        if buffer.peek():
            raise buffer.broken("text after the end of the array")


_AFTER = re.compile(r"[ \t\r\n]*[,\]]")


class _Buffer:
    """A JSON text, of which only the part around `place` is in memory."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        """file: open at its beginning."""
        self._path, self._file = path, file
        self._text, self._place, self._line = "", 0, 1

    def peek(self) -> str:
        """The next character that is no blank, empty at the end of the file."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in " \t\r\n":
                self._place += 1
            if self._place < len(self._text) or not self._more():
                return self._text[self._place : self._place + 1]

    def skip(self, character: str) -> None:
        """Step over a character that must come next. Raises UserError."""
        if self.peek() != character:
            raise self.broken(f"expected {character}")
        self._place += 1

    def element(self, number: int) -> Record:
        """The value that begins here. Raises UserError if it is broken or longer than MAX_ROW."""
        self.peek()
        while True:
            length, result = self._decode(number)
            if length and _AFTER.match(self._text, self._place + length):  # else a number might go on
                break
            if not self._more():
                if length:
                    break  # the caller misses what must follow
                raise self.broken(str(result))
        self._place += length
        return result

    def _decode(self, number: int) -> tuple[int, Any]:
        """Length and record of the value that begins here, or 0 and what is wrong with the text so far."""
        try:
            try:
                value, end = _STRICT.raw_decode(self._text, self._place)
                return end - self._place, _record(number, value)
            except _DuplicateKeys as error:
                end = _PLAIN.raw_decode(self._text, self._place)[1]
                return end - self._place, _twice(number, error)
        except RecursionError:
            raise self.broken("nested too deeply for a row") from None
        except ValueError as error:
            return 0, error

    def _more(self) -> bool:
        """Read on; whether there was more. What lies behind is dropped."""
        self._line += self._text.count("\n", 0, self._place)
        rest, self._place = self._text[self._place :], 0
        if len(rest) > MAX_ROW:
            raise self.broken(f"broken, or a row of more than {MAX_ROW} bytes")
        piece = self._file.read(max(PIECE, len(rest)))
        self._text = rest + piece
        return bool(piece)

    def broken(self, what: str) -> UserError:
        """The error that names the line of the value that begins here."""
        line = self._line + self._text.count("\n", 0, self._place)
        return UserError(f"{self._path}: line {line}: not a whole JSON array ({what}); fetch it again")


def count_lines(path: Path) -> int:
    """Lines of a file: about its rows."""
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(PIECE), b""))
