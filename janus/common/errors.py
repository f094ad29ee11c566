"""Errors that a user can cause and fix: one line, exit code 2, no traceback."""

import click


class UserError(click.ClickException):
    """One line: which file, row and field is wrong, what was expected, and what to do."""

    exit_code = 2
