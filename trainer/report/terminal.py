"""Live progress on a terminal: a bar over the steps, the last step's numbers below, other lines above."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


class LiveProgress(Progress):
    """Draws from `start` to `stop`; needs a terminal behind stdout."""

    def __init__(self, steps: int, done: int) -> None:
        """done: how many of the steps an earlier run has made."""
        columns = (MofNCompleteColumn(), BarColumn(30), TimeRemainingColumn(), TextColumn("left"))
        console = Console(file=sys.stdout)
        self._numbers = Text(style="dim")  # first: rich draws once while it is made
        super().__init__(TextColumn("step"), *columns, console=console, refresh_per_second=4)
        self._steps = self.add_task("", total=steps, completed=done)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar and the numbers below it."""
        yield from super().get_renderables()
        yield self._numbers

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def step(self, number: int, numbers: str) -> None:
        """That step is done, with these numbers."""
        self._numbers = Text(numbers, style="dim")
        self.update(self._steps, completed=number)
