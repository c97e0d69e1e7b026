"""Live progress of a run on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """A line for every record, and a bar below on a terminal. Call it with the records that go to metrics.jsonl.

    A record is shown by whatever it holds of: epoch, loss, accuracy, params, ranks (layer -> bond -> int).
    """

    def __init__(self, epochs: int, console: Console | None = None):
        self._console = console or Console(stderr=True)
        columns = (TextColumn("epoch"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("epoch", total=epochs)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        self._bar.stop()

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Show one record."""
        if "epoch" in record:
            self._bar.update(self._task, completed=record["epoch"])
        self._console.print(line(record), highlight=False, markup=False, soft_wrap=True)


def line(record: Mapping[str, Any]) -> str:
    """One record as one line of text."""
    parts = []
    if "epoch" in record:
        parts.append(f"epoch {record['epoch']:>4g}")
    for key, label, form in (("loss", "loss", "{:.4f}"), ("accuracy", "accuracy", "{:.2%}"), ("params", "", "{:,}")):
        value = record.get(key)
        if value is not None and math.isfinite(value):
            parts.append(f"{label} {form.format(value)}".strip() + (" parameters" if key == "params" else ""))
    for layer, ranks in record.get("ranks", {}).items():
        parts.append(f"{layer} " + ",".join(map(str, ranks.values())))
    return "  ".join(parts)
