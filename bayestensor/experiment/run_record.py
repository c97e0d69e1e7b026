"""What a run folder says, as far as it says anything: for reports, which must cope with unfinished runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayestensor.errors import RunError


@dataclass(frozen=True)
class RunRecord:
    """A run folder, read. What is missing is None or empty.

    Attributes:
        path: the folder.
        config: text of config.yaml.
        manifest: versions, commit, seed, hardware.
        metrics: one record an evaluated epoch.
        summary: what the run came to; None while it goes on.
        twin_metrics: the same of the dense twin.
        sampling: one record a chunk of draws.
    """

    path: Path
    config: str
    manifest: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any] | None
    twin_metrics: list[dict[str, Any]]
    sampling: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """As the summary has it, else the folder's."""
        return str((self.summary or {}).get("name") or self.path.absolute().name)

    @property
    def twin(self) -> dict[str, Any]:
        """The dense twin's figures; empty where there was none."""
        return (self.summary or {}).get("dense_twin") or {}

    @property
    def last(self) -> dict[str, Any]:
        """The latest metrics record; empty where there is none."""
        return self.metrics[-1] if self.metrics else {}

    def latest(self, key: str) -> Any:
        """From the summary, else from the latest metrics record (`params_final` is `num_parameters` there)."""
        found = (self.summary or {}).get(key)
        return self.last.get({"params_final": "num_parameters"}.get(key, key)) if found is None else found

    @property
    def first_ranks(self) -> dict[str, dict[str, int]]:
        """Layer -> bond -> size at the start."""
        return (
            (self.summary or {}).get("ranks_initial") or (self.metrics[0].get("ranks") if self.metrics else None) or {}
        )

    @property
    def cuts(self) -> list[int]:
        """Epochs at which slices were cut."""
        return [record["epoch"] for record in self.metrics if record.get("event") == "pruned" and "epoch" in record]


def read_run(path: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        RunError: no folder, no run, or a damaged file.
    """
    path = Path(path)
    if not path.is_dir():
        raise RunError(f"{path}: no such folder; expected a run folder, which holds config.yaml")
    config = path / "config.yaml"
    if not config.is_file():
        raise RunError(f"{path}: not a run folder: config.yaml is missing")
    return RunRecord(
        path=path,
        config=config.read_text(encoding="utf-8", errors="replace"),
        manifest=_object(path / "manifest.json") or {},
        metrics=_records(path / "metrics.jsonl"),
        summary=_object(path / "summary.json"),
        twin_metrics=_records(path / "twin" / "metrics.jsonl"),
        sampling=_records(path / "sampling.jsonl"),
    )


def _object(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise RunError(f"{path}: damaged; expected JSON") from None
    if not isinstance(data, dict):
        raise RunError(f"{path}: damaged; expected a JSON object, not {type(data).__name__}")
    return data


def _records(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last one that a kill cut short is left out."""
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise RunError(f"{path}: line {number} is damaged; expected a JSON record")
        records.append(record)
    return records
