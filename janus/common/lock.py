"""One process at a time in a place: the second is told so at once. A process that is killed locks nothing."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from janus.common.errors import UserError

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What a file system says that has none, as some of clusters."""


@contextmanager
def alone(path: Path, taken: str) -> Iterator[None]:
    """Hold the lock file `path` while entered; then it is removed. Its folder has to be there.

    Raises UserError saying `taken` if another process holds it, OSError if the file cannot be made.
    """
    number = _lock(path, taken)
    try:
        yield
    finally:
        with suppress(OSError):  # a disk that has become read-only; the lock goes with the process
            path.unlink(missing_ok=True)
        os.close(number)


def _lock(path: Path, taken: str) -> int:
    """The open lock file. Kernel locks go with the process, whatever ends it."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _names(path, number):
                return number
        except BlockingIOError:
            os.close(number)
            raise UserError(taken) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(number)
                raise
            click.echo(f"warning: {path}: no locks here ({error}); see to it that only one runs", err=True)
            return number
        os.close(number)


def _names(path: Path, number: int) -> bool:
    """Whether the path still names the open file: whoever held it may have removed it meanwhile."""
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except FileNotFoundError:
        return False
