"""Errors that a user can cause and fix: one line, exit code 2, no traceback."""

from collections.abc import Sequence

import click


class UserError(click.ClickException):
    """One line: which file, row and field is wrong, what was expected, and what to do.

    details: the whole list if the line holds only its beginning.
    """

    exit_code = 2

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)
