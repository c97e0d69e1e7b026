"""`bayestensor complete`: a file with holes in; the completed tensor, its intervals, a summary and figures out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bayestensor.errors import DataError
from bayestensor.estimators import TensorCompletion
from bayestensor.estimators import inputs as tensors
from bayestensor.experiment import task as tasks
from bayestensor.files import vacant, write_atomically, writing

LEVEL = 0.9
_LARGEST_TABLE = 5_000_000  # rows of a completed long table
SUFFIXES = (".npy", ".npz", ".nc", ".csv", ".parquet")


def read(path: Path) -> tuple[Any, ...]:
    """What `TensorCompletion.fit` takes, from a file.

    .npy: an array with NaN; .npz: one array with NaN, or `coords`, `values` and perhaps `shape`; .nc: a file with one
    data variable; .csv and .parquet: a long table, one column a mode and last the value. Nothing is unpickled.

    Raises:
        DataError: no such file, another suffix, or contents that are none of these.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: files end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return _READERS[path.suffix](path)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix}: {error}") from error


def modes(text: str) -> Any:
    """'auto', () for 'none', or the modes of '0,2'.

    Raises:
        DataError: none of these.
    """
    if text in ("auto", "none"):
        return "auto" if text == "auto" else ()
    if not all(number.strip().isdigit() for number in text.split(",")):
        raise DataError(f"effects is {text!r}; auto, none, or numbers of modes as in 0,2 are needed")
    return tuple(int(number) for number in text.split(","))


def complete(path: Path, out: Path, options: Mapping[str, Any], hold_out: float, said: Callable[[str], None]) -> Any:
    """Fit, predict and write; (estimator, summary).

    With `hold_out` a first fit leaves that share of the observed entries out, and its predictions of them are scored;
    the second fit has them all and makes the predictions that are written.

    Raises:
        DataError: a file or data that cannot be used, or parameters that are none.
        RunError: `out` is taken.
    """
    given = read(path)
    vacant(out)
    try:
        observed = tensors.read(*given)
        said(f"{len(observed.values):,} observed entries of a tensor of shape {observed.shape}")
        held = _held_out(observed, options, hold_out, said) if hold_out else None
        model = TensorCompletion(**options).fit(*given)
    except (ValueError, FloatingPointError) as error:
        raise DataError(f"{path}: {error}") from error
    summary = _summary(model, observed, held)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    _write(model, observed, path, out)
    return _finish(model, observed, held, summary, out)


def complete_known(path: Path, out: Path, seed: int | None, data_dir: Path | None, said: Callable[[str], None]) -> Any:
    """As `complete`, by a config (see `experiment.task`): its hidden entries are known, and scored.

    `completed.npz` has the whole tensor, or where that is too large the hidden entries, with their coordinates.

    Raises:
        ConfigError, DataError, RunError: as `task.load`, `task.hide` and `complete`.
    """
    task = tasks.load(path, seed)
    known = tasks.hide(task, data_dir)
    vacant(out)
    try:
        observed = tensors.read(*known.given)
        said(f"{len(observed.values):,} observed entries of a tensor of shape {observed.shape}")
        model = TensorCompletion(**tasks.estimator(task)).fit(*known.given)
        said(f"hidden: {len(known.truth):,} entries, to see how well they are predicted")
        held = _scored(model, known.coords, known.truth)
    except (ValueError, FloatingPointError) as error:
        raise DataError(f"{path}: {error}") from error
    arrays = (
        _predictions(model)
        if np.prod(observed.shape, dtype=float) <= _LARGEST_TABLE
        else {"coords": known.coords} | {name: held[name] for name in ("mean", "low", "high")}
    )
    summary = _summary(model, observed, held) | {"task": task.model_dump(exclude={"estimator"})}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out / "completed.npz", **arrays)
    return _finish(model, observed, held, summary, out)


def _finish(model, observed, held, summary, out: Path) -> tuple[TensorCompletion, dict[str, Any]]:
    write_atomically(out / "summary.json", json.dumps(summary, indent=2).encode())
    from bayestensor.experiment.complete_figures import write_figures

    write_figures(model, observed, held, out)
    return model, summary


def _held_out(observed: tensors.Observed, options: Mapping[str, Any], share: float, said) -> dict[str, np.ndarray]:
    """Predictions of entries that a fit did not see."""
    from sklearn.model_selection import train_test_split

    if not 0 < share < 1:
        raise ValueError(f"the held-out share is {share}; a number between 0 and 1 is needed")
    train, test = train_test_split(np.arange(len(observed.values)), test_size=share, random_state=0)
    said(f"held out: {len(test):,} entries, to see how well they are predicted")
    model = TensorCompletion(**options).fit(observed.coords[train], observed.values[train], observed.shape)
    return _scored(model, observed.coords[test], observed.values[test])


def _scored(model: TensorCompletion, at: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Truth, mean, ends of the interval, shares inside intervals of nine levels, and scores."""
    levels = np.arange(0.1, 1, 0.1)
    inside = [
        np.mean((low <= truth) & (truth <= high)) for low, high in (model.predict_interval(p, at) for p in levels)
    ]
    low, high = model.predict_interval(LEVEL, at)
    mean = model.predict(at)
    numbers = {"rrse": model.rrse(at, truth), "log_density": model.score(at, truth)}
    if model.conformal:
        ends = model.conformal_interval(LEVEL, at)
        numbers["conformal_coverage_90"] = float(np.mean((ends[0] <= truth) & (truth <= ends[1])))
        numbers["conformal_width_90"] = float(np.mean(ends[1] - ends[0]))
    return {"truth": truth, "mean": mean, "low": low, "high": high, "levels": levels, "inside": np.array(inside)} | {
        name: np.array(value) for name, value in numbers.items()
    }


def _summary(model: TensorCompletion, observed: tensors.Observed, held: dict[str, np.ndarray] | None) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "shape": list(observed.shape),
        "observed": len(observed.values),
        "format": model.format_,
        "rank": model.rank_,
        "noise": None if np.isnan(model.noise_).any() else np.asarray(model.noise_).tolist(),
        "noise_df": model.noise_df_ if np.isfinite(model.noise_df_) else None,
        "seconds": round(model.diagnostics_["seconds"], 2),
        "parameters": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in model.get_params().items()
            if isinstance(value, (str, int, float, tuple, type(None))) and name != "verbose"
        },
    }
    if held is not None:
        inside = (held["low"] <= held["truth"]) & (held["truth"] <= held["high"])
        summary["held_out"] = {
            "entries": len(inside),
            "rrse": float(held["rrse"]),
            "log_density": float(held["log_density"]),
            "coverage_90": float(inside.mean()),
            "width_90": float(np.mean(held["high"] - held["low"])),
        } | {name: float(value) for name, value in held.items() if name.startswith("conformal")}
    return summary


def _write(model: TensorCompletion, observed: tensors.Observed, path: Path, out: Path) -> None:
    """`completed` in the kind of file that came in: mean, sd, lower and upper end of the 90 % interval.

    With conformal correction also `conformal_lower` and `conformal_upper`.
    """
    if path.suffix in (".csv", ".parquet"):
        table = _table(model, observed)
        with writing(out):
            table.to_csv(out / "completed.csv", index=False) if path.suffix == ".csv" else table.to_parquet(
                out / "completed.parquet", index=False
            )
        return
    arrays = _predictions(model)
    with writing(out):
        if path.suffix == ".nc":
            import xarray

            xarray.Dataset(arrays).to_netcdf(out / "completed.nc", engine="h5netcdf")
        else:
            np.savez_compressed(out / "completed.npz", **arrays)


def _predictions(model: TensorCompletion) -> dict[str, Any]:
    mean, sd = model.predict(return_std=True)
    arrays = dict(zip(("mean", "sd", "lower", "upper"), (mean, sd, *model.predict_interval(LEVEL)), strict=True))
    if model.conformal:
        arrays["conformal_lower"], arrays["conformal_upper"] = model.conformal_interval(LEVEL)
    return arrays


def _table(model: TensorCompletion, observed: tensors.Observed) -> Any:
    """Every combination of labels, a row each."""
    import pandas

    names, labels = observed.names or (), observed.labels or ()  # a table has both
    if np.prod(observed.shape, dtype=float) > _LARGEST_TABLE:
        raise DataError(f"all of the {observed.shape} combinations are too many rows; predict at rows of your choice")
    index = pandas.MultiIndex.from_product(labels, names=list(names))
    table = index.to_frame(index=False)
    return table.assign(**{name: np.ravel(array) for name, array in _predictions(model).items()})


def _npz(path: Path) -> tuple[Any, ...]:
    with np.load(path, allow_pickle=False) as arrays:
        if {"coords", "values"} <= set(arrays.files):
            shape = tuple(arrays["shape"].tolist()) if "shape" in arrays.files else None
            return arrays["coords"], arrays["values"], shape
        if len(arrays.files) != 1:
            raise ValueError(f"it holds {arrays.files}; one array, or coords and values (and shape), are needed")
        return (arrays[arrays.files[0]],)


def _nc(path: Path) -> tuple[Any, ...]:
    import xarray

    with xarray.open_dataset(path, engine="h5netcdf") as data:
        if len(data.data_vars) != 1:
            raise ValueError(f"it holds the variables {list(data.data_vars)}; one is needed")
        return (next(iter(data.data_vars.values())).load(),)


def _csv(path: Path) -> tuple[Any, ...]:
    import pandas

    return (pandas.read_csv(path),)


def _parquet(path: Path) -> tuple[Any, ...]:
    import pandas

    return (pandas.read_parquet(path),)


_READERS: dict[str, Callable[[Path], tuple[Any, ...]]] = {
    ".npy": lambda path: (np.load(path, allow_pickle=False),),
    ".npz": _npz,
    ".nc": _nc,
    ".csv": _csv,
    ".parquet": _parquet,
}
