"""Files and folders that are there whole or not at all, also after the power fails.

What is written goes beside (`.tmp-…`), is flushed to the disk, and gets its name last.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says when a file cannot grow: disk, quota or limit."""


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills the file it is given, which then takes `path`'s place. OSError leaves what was there."""
    tmp = path.with_name(f".tmp-{path.name}.part")  # nothing that `*.arrow` would take for a whole one
    try:
        write(tmp)
        sync(tmp)
        tmp.replace(path)
        sync(path.parent)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """The text, as UTF-8, takes `path`'s place. OSError leaves what was there."""
    write_file(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills the new folder it is given; then it takes the place of `path`.

    OSError leaves what was there, and nothing beside it: a disk that is full gets its space back.
    """
    tmp = path.with_name(f".tmp-{path.name}")
    try:
        shutil.rmtree(tmp, ignore_errors=True)  # of a run that was killed
        tmp.mkdir(parents=True)
        write(tmp)
        for file in tmp.rglob("*"):
            sync(file)
        sync(tmp)
        if path.exists():
            shutil.rmtree(path)
        tmp.replace(path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
