"""What adapters share: the raw row, finding files, reading pictures, texts that may not be UTF-8."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from janus.common.errors import UserError

MAX_PICTURE = 1 << 29
"""Bytes of a picture file: more than Pillow's limit of 89 million pixels needs at 16 bits."""


class RowError(ValueError):
    """Why a row is rejected: its args are the reason, one of few, and perhaps a detail."""


@dataclass(frozen=True)
class RawRow:
    """A row as an adapter reads it. Bytes in place of a string may not be UTF-8."""

    source_key: str | bytes | None
    prompt: str | bytes | None = None
    answer: str | bytes | None = ""
    history: list[dict[str, str]] = field(default_factory=list)  # of `user` and `assistant`
    image: bytes | None = None  # the encoded file
    split: str | None = None  # upstream's
    error: RowError | None = None  # why the row is rejected


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The files that match, sorted. Raises UserError if there are none, and for a link out of the folder."""
    found = sorted(folder.glob(pattern))
    if not found:
        raise UserError(f"{folder}: no file matches {pattern}; is this the data set's own layout?")
    for path in found:
        if not _stays_below(folder, path):
            raise UserError(f"{path}: a link that leaves {folder}; put the file itself there")
    return found


def read_image(root: Path, name: str) -> bytes:
    """The picture file `name`, relative to `root`. Raises RowError if it is missing, refused or unreadable.

    A path in the data is not trusted: it must not be absolute, climb, or leave `root` by a link.
    """
    path = root / name
    try:
        climbs = "\0" in name or "\\" in name or Path(name).is_absolute() or ".." in Path(name).parts
        if climbs or not _stays_below(root, path):
            raise RowError("image_path_refused", name)
        if not path.is_file():
            raise RowError("image_missing", name)
        if (size := path.stat().st_size) > MAX_PICTURE:  # before reading: it may not fit into memory
            raise RowError("image_unreadable", f"{name}: {size} bytes, more than {MAX_PICTURE}")
        return path.read_bytes()
    except OSError as error:
        raise RowError("image_unreadable", f"{name}: {error.strerror}") from None


def _stays_below(folder: Path, path: Path) -> bool:
    # realpath: a link to itself counts as the link, where Path.resolve raises.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def printable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 does not have, escaped; any other text stays the same."""
    return text.encode(errors="backslashreplace").decode()
