"""How far generation is: a bar on a terminal, plain lines elsewhere; always on the standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import Progress

LINES = 10
"""Plain lines of a whole run, where there is no terminal."""


@contextmanager
def token_progress(what: str, tokens: int) -> Iterator[Callable[[], None]]:
    """Gives what to call after each token (of a whole batch), at most `tokens` times."""
    if sys.stderr.isatty():
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=tokens)
            yield lambda: bar.advance(task)
        return
    done, began = 0, time.perf_counter()

    def advance() -> None:
        nonlocal done
        done += 1
        if done * LINES // tokens > (done - 1) * LINES // tokens:
            seconds = time.perf_counter() - began
            click.echo(f"{what}: {done} of {tokens} steps, {seconds:.1f} s", err=True)

    yield advance
