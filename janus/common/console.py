"""How far a command is: a bar with rate and remaining time on a terminal, plain lines elsewhere.

All of it goes to the standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

PLAIN_SECONDS = 10.0
"""Between two plain lines."""


@contextmanager
def track(label: str, total: int, unit: str = "rows", resumed: int = 0) -> Iterator[Callable[..., None]]:
    """Gives `advance(n=1)`; reports at the end the number of units and the rate.

    resumed: units of `total` that an earlier run has done; they do not count in the rate.
    """
    if resumed:
        click.echo(f"{label}: resumed after {resumed:,} of {total:,} {unit}", err=True)
    start, done = time.monotonic(), 0
    with (_bar if sys.stderr.isatty() else _lines)(label, total, unit, resumed) as show:

        def advance(count: int = 1) -> None:
            nonlocal done
            done += count
            show(done, _rate(done, time.monotonic() - start))

        yield advance
    seconds = time.monotonic() - start
    click.echo(f"{label}: {done:,} {unit} in {seconds:.1f} s ({_rate(done, seconds)}/s)", err=True)


def _rate(done: int, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


@contextmanager
def _bar(label: str, total: int, unit: str, resumed: int) -> Iterator[Callable[[int, str], None]]:
    from rich import progress
    from rich.console import Console

    rate, left = progress.TextColumn("{task.fields[rate]}"), progress.TimeRemainingColumn()
    columns = (progress.TextColumn(label), progress.BarColumn(), progress.MofNCompleteColumn(), rate, left)
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, completed=resumed, rate="")
        yield lambda done, rate: bar.update(task, completed=resumed + done, rate=f"{rate} {unit}/s")


@contextmanager
def _lines(label: str, total: int, unit: str, resumed: int) -> Iterator[Callable[[int, str], None]]:
    start = last = time.monotonic()

    def show(done: int, rate: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PLAIN_SECONDS:
            return
        last = now
        left = max(total - resumed - done, 0) * (now - start) / max(done, 1)
        click.echo(f"{label}: {resumed + done:,} of {total:,} {unit}, {rate}/s, {left:.0f} s left", err=True)

    yield show
