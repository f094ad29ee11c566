"""Live progress on a terminal: a bar over the steps, the last step's numbers below, other lines above."""

from __future__ import annotations

import sys

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


class LiveProgress:
    """Draws from `start` to `stop`; needs a terminal behind stdout."""

    def __init__(self, steps: int, done: int) -> None:
        """done: steps of them that an earlier run has made."""
        console = Console(file=sys.stdout)
        columns = (MofNCompleteColumn(), BarColumn(30), TimeRemainingColumn(), TextColumn("left"))
        self._bar = Progress(TextColumn("step"), *columns, console=console)
        self._task = self._bar.add_task("", total=steps, completed=done)
        self._numbers = Text()
        self._live = Live(
            get_renderable=lambda: Group(self._bar, self._numbers), console=console, refresh_per_second=4
        )

    def start(self) -> None:
        """Begin to draw."""
        self._live.start()

    def stop(self) -> None:
        """Draw a last time and leave the terminal as it was."""
        self._live.stop()

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def step(self, number: int, numbers: str) -> None:
        """That step is done, with these numbers."""
        self._bar.update(self._task, completed=number)
        self._numbers = Text(numbers, style="dim")
