"""Progress of a command: a live bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TextIO

import click

PLAIN_SECONDS = 10.0
"""Between two plain lines."""


class Display:
    """A bar on a terminal, with a line of figures below it; draws while `live` is entered."""

    def __init__(
        self, label: str, total: int | None, done: int, file: TextIO, transient: bool = False
    ) -> None:
        """done: units of `total` that an earlier run has done. transient: leave nothing on the screen."""
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        columns = (MofNCompleteColumn(), BarColumn(30), TimeRemainingColumn(), TextColumn("left"))
        self._bar = Progress(TextColumn(label), *columns)
        self._task = self._bar.add_task("", total=total, completed=done)
        self._figures = Text(style="dim")
        # What goes to a pipe or file must still reach it.
        redirect = {f"redirect_{name}": getattr(sys, name).isatty() for name in ("stdout", "stderr")}
        shown = Group(self._bar, self._figures)
        self.live = Live(shown, console=Console(file=file), transient=transient, **redirect)

    def say(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        self.live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, done: int, figures: str) -> None:
        """Move the bar to `done` and replace the figures."""
        self._figures.plain = figures
        self._bar.update(self._task, completed=done)


@contextmanager
def track(
    label: str, total: int | None, unit: str = "rows", resumed: int = 0
) -> Iterator[Callable[..., None]]:
    """Give `advance(n=1)`; at the end print the number of units and the rate. All on standard error.

    total: None if only the end will tell. resumed: units of `total` that an earlier run has done; they do not
    count in the rate.
    """
    if resumed:
        click.echo(f"{label}: resumed after {resumed:,} of {total or 0:,} {unit}", err=True)
    display = Display(label, total, resumed, sys.stderr, transient=True) if sys.stderr.isatty() else None
    start = last = time.monotonic()
    done = 0

    def advance(count: int = 1) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        rate = f"{_rate(done, now - start)} {unit}/s"
        if display:
            display.show(resumed + done, rate)
        elif now - last >= PLAIN_SECONDS:
            last = now
            text = f"{resumed + done:,}"
            if total is not None:
                left = max(total - resumed - done, 0) * (now - start) / max(done, 1)
                text += f" of {total:,}, {rate}, {left:.0f} s left"
            click.echo(f"{label}: {text}", err=True)

    with display.live if display else nullcontext():
        yield advance
    seconds = time.monotonic() - start
    click.echo(f"{label}: {done:,} {unit} in {seconds:.1f} s ({_rate(done, seconds)}/s)", err=True)


def _rate(done: int, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
