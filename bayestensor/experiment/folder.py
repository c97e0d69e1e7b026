"""The run folder: what a run was, what it saw, what it left."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayestensor.errors import ConfigError, RunError
from bayestensor.files import vacant, write_atomically, writing

if TYPE_CHECKING:
    from bayestensor.experiment.config import Config

_PACKAGES = ("bayestensor", "jax", "jaxlib", "flax", "optax", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """A folder that `create` made or `open_run` recognised."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def manifest_file(self) -> Path:
        """Versions, commit, seed, hardware."""
        return self.path / "manifest.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON record a line, in the order of their steps."""
        return self.path / "metrics.jsonl"

    @property
    def sampling_file(self) -> Path:
        """As metrics.jsonl, one record a chunk of draws."""
        return self.path / "sampling.jsonl"

    @property
    def draws(self) -> Path:
        """Folder of the draws, a file a chunk."""
        return self.path / "draws"

    @property
    def pruned(self) -> Path:
        """Folder of the draws without the slices that hold too little posterior mass."""
        return self.path / "pruned"

    @property
    def sampling_checkpoints(self) -> Path:
        """Folder of checkpoints of the sampling stage."""
        return self.path / "sampling"

    @property
    def summary_file(self) -> Path:
        """What the run came to; there once it has finished."""
        return self.path / "summary.json"

    @property
    def plans_file(self) -> Path:
        """Contraction plans in use, so that a resumed run computes in the same order."""
        return self.path / "plans.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Folder of the checkpoint with the lowest validation NLL, where training may stop early."""
        return self.path / "best"

    @property
    def model_stem(self) -> Path:
        """Of model.npz and model.json."""
        return self.path / "model"

    def config(self) -> Config:
        """The config the run was started with, overrides included."""
        from bayestensor.experiment.config import load

        return load(self.config_file)

    def manifest(self) -> dict[str, Any]:
        """What `create` noted."""
        return read_json(self.manifest_file)

    def summary(self) -> dict[str, Any]:
        """What `write_summary` wrote."""
        return read_json(self.summary_file)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, whole or not at all."""
        write_json(self.summary_file, summary)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one record, which holds its `step`; a number that is not finite is written as null."""
        _append(self.metrics_file, record)

    def append_sampling(self, record: Mapping[str, Any]) -> None:
        """The same for the sampling stage."""
        _append(self.sampling_file, record)

    def metrics(self) -> list[dict[str, Any]]:
        """All whole records; a last line that a kill cut short is left out.

        Raises:
            RunError: a line before the last that is no record.
        """
        return _records(self.metrics_file)

    def truncate_metrics(self, step: int) -> None:
        """Drop every record after `step`, and a line cut short, so that a resumed run writes them again."""
        _truncate(self.metrics_file, step)

    def truncate_sampling(self, step: int) -> None:
        """The same for the sampling stage."""
        _truncate(self.sampling_file, step)


def _append(path: Path, record: Mapping[str, Any]) -> None:
    line = json.dumps(_plain(record), allow_nan=False) + "\n"
    with writing(path), path.open("a", encoding="utf-8") as stream:
        stream.write(line)


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(
        path.read_bytes().split(b"\n")[:-1], 1
    ):  # after the last line end: nothing, or a torn one
        try:
            record = json.loads(line)
            record["step"]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{path}: line {number} is damaged; expected a JSON record") from None
        records.append(record)
    return records


def _truncate(path: Path, step: int) -> None:
    kept = [record for record in _records(path) if record["step"] <= step]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def create(path: str | Path, config: Config, data_dir: str | Path | None = None) -> RunFolder:
    """Make a run folder with its config.yaml and manifest.json.

    Raises:
        RunError: something is already there, or the folder cannot be written.
    """
    from bayestensor.experiment.config import dump

    folder = RunFolder(vacant(Path(path)))
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    data_dir = None if data_dir is None else str(Path(data_dir).absolute())
    write_json(folder.manifest_file, manifest(config.seed) | {"data_dir": data_dir})
    write_atomically(folder.config_file, dump(config).encode())  # last: with it, the folder is a run
    return folder


def open_run(path: str | Path) -> RunFolder:
    """An existing run folder.

    Raises:
        RunError: not there, or not a run folder.
    """
    folder = RunFolder(Path(path))
    if not folder.path.is_dir():
        raise RunError(f"{path}: no such folder; expected a run folder, which holds config.yaml and manifest.json")
    missing = [file.name for file in (folder.config_file, folder.manifest_file) if not file.is_file()]
    if missing:
        raise RunError(f"{path}: not a run folder: {' and '.join(missing)} missing")
    try:
        folder.config()
    except ConfigError as error:
        raise RunError(f"{path}: not a run folder of this version: {error}") from None
    return folder


def manifest(seed: int) -> dict[str, Any]:
    """Versions, commit, seed and hardware of this process. Starts JAX's backend."""
    import jax

    device = jax.devices()[0]
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "command": sys.argv[1:],
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        RunError: missing or damaged.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (ValueError, RecursionError):
        raise RunError(f"{path}: damaged; expected JSON") from None
    if not isinstance(data, dict):
        raise RunError(f"{path}: damaged; expected a JSON object, not {type(data).__name__}")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """A JSON object into a file, whole or not at all; numbers that are not finite become null."""
    write_atomically(path, (json.dumps(_plain(data), indent=2, allow_nan=False) + "\n").encode())


def _plain(data: Any) -> Any:
    """Python's own numbers and containers in place of NumPy's and JAX's."""
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in data]
    if hasattr(data, "tolist"):
        return _plain(data.tolist())
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree this package runs from, `+` behind it where files differ; None outside git."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # an installed copy inside someone's repository is not it
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
