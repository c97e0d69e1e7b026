"""Numbers of a report as they read and as they are."""

from __future__ import annotations

from typing import Any, NamedTuple


class Cell(NamedTuple):
    """A number as it reads and as it is."""

    text: str
    value: Any = None


NOTHING = Cell("–")


def plain(value: Any) -> Cell:
    """As Python writes it."""
    return NOTHING if value is None else Cell(str(value), value)


def _formatted(form: str):
    def cell(value: Any) -> Cell:
        return NOTHING if value is None else Cell(form.format(value), value)

    return cell


count = _formatted("{:,}")
percent = _formatted("{:.2%}")
decimal = _formatted("{:.4f}")
seconds = _formatted("{:.1f}")
times = _formatted("{:.1f}×")
