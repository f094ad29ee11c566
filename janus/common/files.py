"""Atomic writes of files and folders, also across a power failure; exclusive locks.

An atomic write goes to `.tmp-…` in the same folder, is flushed to the disk, and gets its name last.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from janus.common.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a file that cannot grow: disk, quota or limit."""
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP}
"""Errors of a file system without locks."""


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a temporary file, which then replaces `path`. An OSError leaves the old file."""
    tmp = path.with_name(f".tmp-{path.name}.part")  # no glob of whole files matches this suffix
    try:
        write(tmp)
        sync(tmp)
        tmp.replace(path)
        sync(path.parent)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace `path` by the text, as UTF-8. An OSError leaves the old file."""
    write_file(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """`write` fills a temporary folder, which then replaces `path`. An OSError leaves the old folder."""
    tmp = path.with_name(f".tmp-{path.name}")
    try:
        shutil.rmtree(tmp, ignore_errors=True)  # of a run that was killed
        tmp.mkdir(parents=True)
        write(tmp)
        replace_folder(tmp, path)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def replace_folder(tmp: Path, path: Path) -> None:
    """Flush the finished folder `tmp` to the disk and replace `path` by it."""
    for file in tmp.rglob("*"):
        sync(file)
    sync(tmp)
    old = path.with_name(f".old-{path.name}")
    shutil.rmtree(old, ignore_errors=True)  # of a run that was killed between the renames
    if path.exists():
        path.rename(old)
    tmp.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, why: str) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if there is none; `why` says who needs the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {why}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); fetch or copy it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; fetch or copy it again")
    return content


@contextmanager
def exclusive_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is removed at the end. Its folder must exist.

    Raises UserError with the text `busy` if another process holds it, OSError if the file cannot be made. The
    kernel releases the lock when its process ends, however it ends.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0.1, poll_interval=0.02)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(busy) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warning = f"warning: {path}: this file system has no locks ({error}); run one process at a time"
        click.echo(warning, err=True)
    try:
        yield
    finally:
        with suppress(OSError):  # a disk that has become read-only
            path.unlink(missing_ok=True)
        lock.release()
