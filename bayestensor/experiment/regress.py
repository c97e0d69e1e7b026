"""`bayestensor regress`: cross-validation of a regressor or classifier of tensor covariates, by config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from bayestensor.data.covariates import COVARIATE_SETS
from bayestensor.errors import ConfigError, DataError
from bayestensor.experiment.config import load_section
from bayestensor.experiment.sections import Count, Section
from bayestensor.experiment.task import Modes
from bayestensor.files import vacant, write_atomically, writing

LEVELS = np.arange(0.1, 1, 0.1)


class Estimator(Section):
    """Parameters of `TensorRegressor` and `TensorClassifier`, their defaults where nothing is said."""

    format: str = "cp"
    max_rank: Count | Literal["auto", "full"] = "auto"
    prior: str | None = None
    smooth: Modes = "auto"
    remainder: Literal["auto", "linear"] | None = "auto"
    inference: str = "gibbs"
    num_draws: Count = 200
    burn_in: Count = 200
    chains: Count = 2


class Folds(Section):
    """Which data are predicted from which: shuffled folds, stratified by class, or windows of time from all before."""

    number: Annotated[int, Field(ge=2)] = 5
    window: Count | None = None  # data of each window; null: shuffled folds


class Regression(Section):
    """One cross-validation."""

    data: str  # a set of `data.covariates`, or an .npz file with X (n, ...) and y; whole numbers or text are classes
    folds: Folds = Folds()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    estimator: Estimator = Estimator()


def regress(path: Path, out: Path, seed: int | None, data_dir: Path | None, said: Callable[[str], None]) -> Any:
    """Fit on all folds but one, predict that one, fold by fold; `summary.json`, `predictions.npz` and a figure.

    Raises:
        ConfigError, DataError, RunError: a config, data or parameters that cannot be used, or `out` is taken.
    """
    task = load_section(Regression, path, seed)
    x, y, responses = _data(task, data_dir)
    vacant(out)
    try:
        found = _classes(task, x, y, said) if y.dtype.kind not in "f" else _numbers(task, x, y, said)
    except (ValueError, FloatingPointError) as error:
        raise DataError(f"{path}: {error}") from error
    scores = _class_scores(found) if "probabilities" in found else _number_scores(found, responses)
    summary: dict[str, Any] = {
        "data": task.data,
        "shape": list(x.shape),
        "responses": scores,
        "task": task.model_dump(),
    }
    if "log_score" in found:  # of all responses together, a number
        summary["log_score"] = float(found["log_score"].mean())
    kept: dict[str, Any] = {name: value for name, value in found.items() if name != "inside"}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out / "predictions.npz", **kept)
    write_atomically(out / "summary.json", json.dumps(summary, indent=2).encode())
    _figure(found, out)
    return summary


def _data(task: Regression, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    if task.data in COVARIATE_SETS:
        data = COVARIATE_SETS[task.data](data_dir)
        return data.x.astype(float), data.y, data.responses
    path = Path(task.data)
    if path.suffix != ".npz":
        raise ConfigError(f"data is {task.data!r}; an .npz file, or one of {', '.join(COVARIATE_SETS)}, is needed")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["X"], arrays["y"]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: a file with the arrays X and y is needed: {error}") from error
    if len(x) != len(y):
        raise DataError(f"{path}: X has {len(x)} data, y has {len(y)}")
    return x.astype(float), y, tuple(f"y{k}" for k in range(y.shape[1])) if y.ndim == 2 else ("y",)


def _splits(task: Regression, x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import KFold, StratifiedKFold, TimeSeriesSplit

    number = task.folds.number
    if task.folds.window is not None:
        return list(TimeSeriesSplit(number, test_size=task.folds.window).split(x))
    folds = KFold if y.dtype.kind == "f" else StratifiedKFold
    return list(folds(number, shuffle=True, random_state=task.seed).split(x, y))


def _numbers(task: Regression, x: np.ndarray, y: np.ndarray, said) -> dict[str, np.ndarray]:
    """Truth, mean, ends of the 90 % interval, and shares inside intervals of nine levels, in the order of the folds."""
    from bayestensor.estimators import TensorRegressor

    parts: dict[str, list[np.ndarray]] = {}
    for fold, (train, test) in enumerate(_splits(task, x, y)):
        model = TensorRegressor(**task.estimator.model_dump(), random_state=task.seed).fit(x[train], y[train])
        ends = [model.predict_interval(x[test], level) for level in LEVELS]
        inside = np.array([np.mean((low <= y[test]) & (y[test] <= high)) for low, high in ends])
        one = {"truth": y[test], "mean": model.predict(x[test]), "low": ends[-1][0], "high": ends[-1][1]}
        one |= {
            "row": test,
            "inside": len(test) * inside[None],
            "log_score": np.full(len(test), model.log_score(x[test], y[test])),
        }
        for name, value in one.items():
            parts.setdefault(name, []).append(value)
        said(f"fold {fold + 1}: {len(train)} data to fit, {len(test)} predicted, ranks {model.rank_}")
    found = {name: np.concatenate(value) for name, value in parts.items()}
    return found | {"inside": found["inside"].sum(0) / len(found["truth"])}


def _classes(task: Regression, x: np.ndarray, y: np.ndarray, said) -> dict[str, np.ndarray]:
    """Truth as numbers of the classes, and their probabilities, in the order of the folds."""
    from bayestensor.estimators import TensorClassifier

    labels, place = np.unique(y, return_inverse=True)
    truth, probabilities, rows = [], [], []
    for fold, (train, test) in enumerate(_splits(task, x, y)):
        model = TensorClassifier(**task.estimator.model_dump(), random_state=task.seed).fit(x[train], y[train])
        p = np.zeros((len(test), len(labels)))
        p[:, np.searchsorted(labels, model.classes_)] = model.predict_proba(x[test])
        truth.append(place[test])
        probabilities.append(p)
        rows.append(test)
        said(f"fold {fold + 1}: {len(train)} data to fit, {len(test)} predicted, ranks {model.rank_}")
    found = {"truth": truth, "probabilities": probabilities, "row": rows}
    return {name: np.concatenate(value) for name, value in found.items()} | {"labels": labels}


def _number_scores(found: dict[str, np.ndarray], responses: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """By response; of a tensor response over all entries."""
    truth, mean, low, high = (found[name] for name in ("truth", "mean", "low", "high"))
    every = len(responses) if truth.ndim == 2 and truth.shape[1] == len(responses) else 1
    scores = {}
    for k, name in enumerate(responses[:every] if every > 1 else (responses[0] if truth.ndim == 1 else "all entries",)):
        at = (slice(None), k) if every > 1 else (...,)
        inside = (low[at] <= truth[at]) & (truth[at] <= high[at])
        scores[name] = {
            "rmse": float(np.sqrt(np.mean((mean[at] - truth[at]) ** 2))),
            "coverage_90": float(inside.mean()),
            "width_90": float(np.mean(high[at] - low[at])),
        }
    return scores


def _class_scores(found: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    from sklearn.metrics import log_loss, roc_auc_score

    truth, p = found["truth"], found["probabilities"]
    numbers = np.arange(p.shape[1])
    auc = roc_auc_score(np.eye(len(numbers))[truth], p, average="macro")
    score = -log_loss(truth, p, labels=numbers)
    return {"classes": {"auc": float(auc), "log_score": float(score), "accuracy": float((p.argmax(1) == truth).mean())}}


def _figure(found: dict[str, np.ndarray], out: Path) -> None:
    """`held_out.png`: predictions and calibration, or how often classes come true that had a probability."""
    from matplotlib.figure import Figure

    from bayestensor.experiment.complete_figures import calibration, predicted_against_held_out
    from bayestensor.plots import MUTED, PALETTE, style

    with style():
        if "probabilities" in found:
            from sklearn.calibration import calibration_curve

            figure = Figure(figsize=(3.6, 3.4), layout="constrained")
            axes = figure.subplots()
            hits = np.eye(found["probabilities"].shape[1])[found["truth"]]
            often, said = calibration_curve(hits.ravel(), found["probabilities"].ravel(), n_bins=8, strategy="quantile")
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
            axes.plot(said, often, "o-", color=PALETTE[0], markersize=3)
            axes.set(xlabel="probability of a class", ylabel="how often it came true", xlim=(0, 1), ylim=(0, 1))
        else:
            figure = Figure(figsize=(7, 3.2), layout="constrained")
            left, right = figure.subplots(1, 2)
            flat = {name: found[name].reshape(len(found["truth"]), -1) for name in ("truth", "mean", "low", "high")}
            centre, spread = flat["truth"].mean(0), flat["truth"].std(0)  # responses in units of their own spread
            flat = {name: ((value - centre) / spread).ravel() for name, value in flat.items()}
            error = np.linalg.norm(flat["mean"] - flat["truth"]) / np.linalg.norm(flat["truth"])
            predicted_against_held_out(left, flat | {"rrse": np.array(error)})
            left.set(xlabel="held-out response, standardised")
            calibration(right, LEVELS, found["inside"])
        with writing(out):
            figure.savefig(out / "held_out.png", dpi=150)
