"""What a run tells while it goes."""

from __future__ import annotations

from typing import Any, Protocol


class Progress(Protocol):
    """Told of a run's events; every method may do nothing."""

    def started(self, facts: dict[str, Any]) -> None:
        """Before the first step: name, parameters, epochs, steps_per_epoch, first_epoch."""

    def stepped(self, epoch: int, step: int) -> None:
        """After each chunk of steps: epochs and steps of this epoch that are done."""

    def evaluated(self, record: dict[str, Any]) -> None:
        """After each evaluated epoch: the line that metrics.jsonl gets."""

    def sampling(self, facts: dict[str, Any]) -> None:
        """Before the sampling stage: engine, members (chains or particles), steps, draws, done."""

    def sampled(self, steps: int) -> None:
        """After each chunk of the sampling stage: steps that are done."""

    def drawn(self, record: dict[str, Any]) -> None:
        """After each chunk of draws: the line that sampling.jsonl gets."""

    def said(self, line: str) -> None:
        """Anything else worth a line."""

    def finished(self, summary: dict[str, Any]) -> None:
        """After the last epoch."""


class Silent:
    """Tells nothing."""

    def __getattr__(self, name: str):
        return lambda *_: None
