"""Errors a user can cause and mend: one line, exit code 2, no traceback."""

from __future__ import annotations

from collections.abc import Sequence

import click


class UserError(click.ClickException):
    """Say in one line which file, row and field is wrong, what was expected, and what to do.

    details: the whole list, where the line holds only its beginning.
    """

    exit_code = 2

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)
