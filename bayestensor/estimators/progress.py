"""How far a closed-form fit has come, with the time left once it draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Told:
    """Told of a fit's sweeps, by any thread; nothing comes of it where there is no bar."""

    def __init__(self, bar: Any = None):
        self._bar = bar
        self._task = bar.add_task("looking for basins", total=None) if bar else None

    def drawing(self, sweeps: int) -> None:
        """Chains begin, so many sweeps of all of them together at most."""
        if self._bar:
            self._bar.update(self._task, description="drawing", total=sweeps, completed=0)

    def swept(self, sweeps: int) -> None:
        """So many more of them are done, or will not be needed."""
        if self._bar:
            self._bar.advance(self._task, sweeps)


@contextmanager
def told(shown: bool) -> Iterator[Told]:
    """A bar on stderr while it lasts, where that is a terminal or a notebook."""
    if not shown:
        yield Told()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Told(bar)
