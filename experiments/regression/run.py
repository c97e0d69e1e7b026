"""Tensor regression and classification on real data against PLS, ridge (logistic), GP and TensorLy: see README.md."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import baselines
import numpy as np
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold, TimeSeriesSplit

from bayestensor import TensorClassifier, TensorRegressor
from bayestensor.data.covariates import COVARIATE_SETS

warnings.filterwarnings("ignore")
RESULTS = Path(__file__).parent / "results.jsonl"
CLASSES = ("serology", "eeg")
OURS = {"ours": {}, "low rank alone": {"remainder": None}, "linear remainder": {"remainder": "linear"}}


def splits(task, x, y, seed):
    """Five shuffled folds, stratified by class; of the climate three times two years, from the years before."""
    if task == "climate":
        return list(TimeSeriesSplit(3, test_size=24).split(x))
    folds = StratifiedKFold if task in CLASSES else KFold
    return list(folds(5, shuffle=True, random_state=seed).split(x, y))


def regression(task, method, x, y, x_new, y_new, seed):
    """Figures of one fold, for each response; of a tensor response over all entries."""
    lower = upper = score = None
    if method in OURS:
        model = TensorRegressor(random_state=seed, **OURS[method]).fit(x, y)
        mean, (lower, upper), score = (
            model.predict(x_new),
            model.predict_interval(x_new, 0.9),
            model.log_score(x_new, y_new),
        )
    else:
        groups = [slice(None)] if task == "climate" else [np.array([k]) for k in range(y.shape[1])]
        found = [_baseline(task, method, x, y.reshape(len(y), -1)[:, group], x_new) for group in groups]
        mean = np.concatenate([f[0].reshape(len(x_new), -1) for f in found], axis=1).reshape(y_new.shape)
        if found[0][1] is not None:
            sd = np.concatenate([f[1].reshape(len(x_new), -1) for f in found], axis=1).reshape(y_new.shape)
            lower, upper = mean - 1.6449 * sd, mean + 1.6449 * sd
            score = (-0.5 * ((y_new - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)).mean()
    over = 0 if y.ndim == 2 else None
    out = {"mse": ((mean - y_new) ** 2).mean(axis=over)}
    if lower is not None:
        inside = (y_new >= lower) & (y_new <= upper)
        out |= {"coverage": inside.mean(axis=over), "width": (upper - lower).mean(axis=over), "log_score": score}
    return {name: np.round(np.atleast_1d(value), 6).tolist() for name, value in out.items()}


def _baseline(task, method, x, y, x_new):
    """(mean, sd or None) of one response, or of all of the climate's."""
    flat, flat_new = x.reshape(len(x), -1), x_new.reshape(len(x_new), -1)
    if method.startswith("tensorly"):
        return baselines.tensorly(method, x, y[:, 0], x_new), None
    y = y if y.shape[1] > 1 else y[:, 0]
    if method == "gp":
        return baselines.gaussian_process(flat, y, flat_new)
    return baselines.tuned(method, flat, y, flat_new, ordered=task == "climate"), None


def classes(method, x, y, x_new, y_new, seed):
    """Figures of one fold."""
    flat, flat_new = x.reshape(len(x), -1), x_new.reshape(len(x_new), -1)
    if method in OURS:
        p = TensorClassifier(random_state=seed, **OURS[method]).fit(x, y).predict_proba(x_new)
    elif method == "gp":
        p = baselines.gaussian_process_classes(flat, y, flat_new)
    else:
        p = baselines.tuned(method, flat, y, flat_new)
    labels, place = np.unique(y), np.searchsorted(np.unique(y), y_new)
    auc = roc_auc_score(np.eye(len(labels))[place], p, average="macro")
    figures = {"auc": auc, "log_score": -log_loss(y_new, p, labels=labels), "accuracy": (p.argmax(1) == place).mean()}
    return {name: [round(float(value), 6)] for name, value in figures.items()}


def run(task, method, seed, folds, distinct=False):
    """One row a fold, appended as it ends; `distinct` leaves out data that are copies of others."""
    data = COVARIATE_SETS[task]()
    x, y = data.x.astype(float), data.y
    if distinct:
        first = np.sort(np.unique(x.reshape(len(x), -1), axis=0, return_index=True)[1])
        x, y = x[first], y[first]
    for fold, (train, test) in enumerate(splits(task, x, y, seed)):
        if fold not in folds:
            continue
        began = time.process_time()
        given = x[train], y[train], x[test], y[test], seed
        figures = classes(method, *given) if task in CLASSES else regression(task, method, *given)
        row = {
            "task": task + " distinct" * distinct,
            "method": method,
            "seed": seed,
            "fold": fold,
            "n": len(test),
        } | figures
        row["cpu_seconds"] = round(time.process_time() - began, 1)
        print(json.dumps(row), flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=list(COVARIATE_SETS))
    parser.add_argument("--methods", nargs="+", default=["ours"], help="or 'baselines', or 'tensorly'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, nargs="+", default=range(5))
    parser.add_argument("--distinct", action="store_true", help="without copies: Tecator has 22")
    given = parser.parse_args()
    kind = "classes" if given.task in CLASSES else "regression"
    groups = {"baselines": baselines.BASELINES[kind], "tensorly": baselines.TENSORLY}
    for name in given.methods:
        for method in groups.get(name, (name,)):
            run(given.task, method, given.seed, given.folds, given.distinct)
