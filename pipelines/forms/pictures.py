"""Pictures as rows refer to them: paths, bytes, data URIs. Nothing is fetched, no path leaves its folder."""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm")
"""Of picture files that are looked for by name."""

MAX_PICTURE = 1 << 29
"""Bytes of a picture file: more than Pillow's limit of 89 million pixels needs at 16 bits."""

_REMOTE = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.I)
_DATA = re.compile(r"data:[^,]*,", re.I)

Members = Mapping[str, bytes]
"""Pictures of one sample of a tar, by name."""


class RowError(ValueError):
    """Why a row is rejected: its args are the reason, one of few, and the detail."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason, None if detail is None else printable(detail))


@dataclass(frozen=True)
class Picture:
    """A picture as the row gives it. root: the folder that its path starts from, or the members of a tar."""

    value: Any
    root: Path | Members

    @property
    def path(self) -> Path | None:
        """Its file, not checked, if it is one."""
        name = _reference(self.value)
        if not isinstance(name, str) or not isinstance(self.root, Path) or _DATA.match(name):
            return None
        return self.root / name

    def read(self) -> bytes:
        """The encoded picture. Raises RowError."""
        name = _reference(self.value)
        if name is None:
            raise RowError("image_missing")
        if isinstance(name, bytes):
            return name
        if not is_unicode(name):
            raise RowError("invalid_text", f"picture {printable(name)}: not UTF-8")
        if match := _DATA.match(name):
            return _decode(name, match)
        if _REMOTE.match(name):
            raise RowError("remote_image", f"{name[:200]}: fetch it, and give its path")
        if isinstance(self.root, Path):
            return read_file(self.root, name)
        if name not in self.root:
            raise RowError("image_missing", f"{name}: not beside the row in the tar")
        return self.root[name]


def _reference(value: Any) -> str | bytes | None:
    """Bytes or name of a picture, None for none. Raises RowError for other types."""
    if isinstance(value, Mapping):
        found = (value.get(name) for name in ("bytes", "url", "path", "image"))
        value = next((item for item in found if item is not None), None)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool):  # as texts: 7 may be a file's name
        return str(value)
    if value is not None and not isinstance(value, str | bytes):
        raise RowError("wrong_type", f"picture is {type(value).__name__}, expected a path, bytes or data URI")
    return value


def _decode(uri: str, head: re.Match[str]) -> bytes:
    """The bytes of a data URI. Raises RowError."""
    if not head.group().lower().endswith(";base64,"):
        raise RowError("bad_base64", f"{head.group()[:60]}: a data URI without base64")
    try:
        data = base64.b64decode(uri[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError("bad_base64", f"{head.group()[:60]} {error}") from None
    if not data:
        raise RowError("bad_base64", f"{head.group()[:60]} holds nothing")
    return data


def read_file(root: Path, name: str) -> bytes:
    """The picture file `name`, relative to `root`. Raises RowError if it is missing, refused or unreadable.

    A path in the data is not trusted: it must not be absolute, climb, or leave `root` by a link.
    """
    path = root / name
    try:
        climbs = "\0" in name or "\\" in name or Path(name).is_absolute() or ".." in Path(name).parts
        if climbs or not stays_below(root, path):
            raise RowError("image_path_refused", name)
        if not path.is_file():
            raise RowError("image_missing", name)
        if (size := path.stat().st_size) > MAX_PICTURE:  # before reading: it may not fit into memory
            raise RowError("image_unreadable", f"{name}: {size} bytes, more than {MAX_PICTURE}")
        return path.read_bytes()
    except OSError as error:
        raise RowError("image_unreadable", f"{name}: {error.strerror}") from None


def stays_below(folder: Path, path: Path) -> bool:
    """Whether a path, all links followed, lies in the folder. A link to itself counts as the link."""
    return Path(os.path.realpath(path)).is_relative_to(_real(folder))


@lru_cache(maxsize=64)
def _real(folder: Path) -> str:
    return os.path.realpath(folder)


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8 (lone surrogates cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """A text for a reject's key or detail, whatever it holds."""
    return text.encode(errors="backslashreplace").decode()
