"""Tensor regression and classification on real data against PLS, ridge (logistic), GP and TensorLy: see README.md."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.cross_decomposition import PLSRegression
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LogisticRegressionCV, Ridge
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, TimeSeriesSplit
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from bayestensor import TensorClassifier, TensorRegressor
from bayestensor.data.covariates import COVARIATE_SETS

warnings.filterwarnings("ignore")
HERE = Path(__file__).parent
CLASSES = ("serology", "eeg")
TOGETHER = ("climate",)  # responses that the baselines fit at once: 2125 fits each would take hours


def splits(task, x, y, seed):
    if task == "climate":
        return list(TimeSeriesSplit(3, test_size=24).split(x))
    if task in CLASSES:
        return list(StratifiedKFold(10 if task == "eeg" else 5, shuffle=True, random_state=seed).split(x, y))
    return list(KFold(5, shuffle=True, random_state=seed).split(x))


def inner(task):
    return TimeSeriesSplit(3, test_size=12) if task == "climate" else KFold(5, shuffle=True, random_state=0)


def searched(task, model, grid):
    """Tuned by inner cross-validation, columns as they are or standardised."""
    steps = Pipeline([("scale", StandardScaler()), ("model", model)])
    grid = {f"model__{name}": values for name, values in grid.items()}
    scale = [StandardScaler(), StandardScaler(with_std=False)]
    return GridSearchCV(steps, grid | {"scale": scale}, scoring="neg_mean_squared_error", cv=inner(task))


class GaussianProcess:
    """Squared exponential and noise by maximum likelihood, columns as they are or standardised by likelihood too."""

    def fit(self, x, y):
        shared = (x - x.mean(0)) / (x.std() or 1.0)
        every = StandardScaler().fit_transform(x)
        scores = []
        for data in (shared, every):
            kernel = ConstantKernel(1.0, (1e-3, 1e6)) * RBF(np.sqrt(x.shape[1]), (1e-2, 1e5))
            model = GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-8, 10)), normalize_y=True).fit(data, y)
            scores.append((model.log_marginal_likelihood_value_, model))
        best = int(scores[1][0] > scores[0][0])
        self.model = scores[best][1]
        self.shift = x.mean(0)
        deviation = x.std(0)
        self.by = np.where(deviation > 0, deviation, 1.0) if best else (x.std() or 1.0)
        return self

    def predict(self, x, return_std=False):
        return self.model.predict((x - self.shift) / self.by, return_std=return_std)


def regressors(task, method, seed):
    if method == "bayestensor":
        return TensorRegressor(random_state=seed)
    if method == "no remainder":
        return TensorRegressor(random_state=seed, remainder=None)
    if method == "pls":
        return searched(task, PLSRegression(scale=False), {"n_components": [1, 2, 3, 5, 7, 10, 14, 18, 22]})
    if method == "ridge":
        return searched(task, Ridge(), {"alpha": np.geomspace(1e-7, 1e6, 27)})
    return GaussianProcess()


def predicted(task, method, x, y, train, test, seed):
    """(prediction, lower, upper or None, mean log density or None) of one regression fold."""
    if method.startswith("tensorly"):
        return tensorly(method, x[train], y[train], x[test]), None, None, None
    model = regressors(task, method, seed)
    if method in ("bayestensor", "no remainder"):
        model.fit(x[train], y[train])
        lower, upper = model.predict_interval(x[test], 0.9)
        return model.predict(x[test]), lower, upper, model.log_score(x[test], y[test])
    flat, columns = x.reshape(len(x), -1), y.reshape(len(y), -1)
    groups = [slice(None)] if task in TOGETHER else [slice(k, k + 1) for k in range(columns.shape[1])]
    mean, sd = np.empty((len(test), columns.shape[1])), None
    for group in groups:
        model.fit(flat[train], columns[train][:, group])
        if method == "gp":
            found, spread = model.predict(flat[test], return_std=True)
            sd = np.empty_like(mean) if sd is None else sd
            sd[:, group] = spread.reshape(len(test), -1)
        else:
            found = model.predict(flat[test])
        mean[:, group] = found.reshape(len(test), -1)
    if sd is None:
        return mean.reshape(y[test].shape), None, None, None
    z = (columns[test] - mean) / sd
    score = float((-0.5 * z**2 - np.log(sd) - 0.5 * np.log(2 * np.pi)).mean())
    ends = [(mean + sign * 1.6449 * sd).reshape(y[test].shape) for sign in (-1, 1)]
    return mean.reshape(y[test].shape), *ends, score


def tensorly(method, x, y, x_new):
    """TensorLy's regressors at one rank, 'tensorly cp 3' and the like, data centred and scaled, each response alone."""
    from tensorly.regression import CPRegressor, TuckerRegressor

    _, kind, rank = method.split()
    mean, size = x.mean(0), np.sqrt(((x - x.mean(0)) ** 2).sum() / len(x))
    columns = y.reshape(len(y), -1)
    out = np.empty((len(x_new), columns.shape[1]))
    for k, column in enumerate(columns.T):
        if kind == "cp":
            model = CPRegressor(weight_rank=int(rank), tol=1e-6, n_iter_max=100, reg_W=1e-3, verbose=0)
        else:
            model = TuckerRegressor([int(rank)] * (x.ndim - 1), tol=1e-6, n_iter_max=100, reg_W=1e-3, verbose=0)
        np.random.seed(0)  # noqa: NPY002  (the library draws its start from the global state)
        model.fit((x - mean) / size, (column - column.mean()) / column.std())
        out[:, k] = np.asarray(model.predict((x_new - mean) / size)).ravel() * column.std() + column.mean()
    return out.reshape(len(x_new), *y.shape[1:])


def classifiers(method, seed):
    if method == "bayestensor":
        return TensorClassifier(random_state=seed)
    if method == "no remainder":
        return TensorClassifier(random_state=seed, remainder=None)
    if method == "logistic":
        model = LogisticRegressionCV(Cs=np.geomspace(1e-6, 1e2, 9), cv=5, scoring="neg_log_loss", max_iter=3000)
    else:
        model = GaussianProcessClassifier(ConstantKernel(1.0) * RBF(30.0, (1e-1, 1e4)), random_state=0)
    return Pipeline([("scale", StandardScaler()), ("model", model)])


def run(task, methods, seed, folds):
    data = COVARIATE_SETS[task]()
    x, y = data.x, data.y
    for method in methods:
        kept = []
        for fold, (train, test) in enumerate(splits(task, x, y, seed)[:folds]):
            began = time.process_time()
            if task in CLASSES:
                model = classifiers(method, seed)
                shaped = x if method in ("bayestensor", "no remainder") else x.reshape(len(x), -1)
                kept.append((test, model.fit(shaped[train], y[train]).predict_proba(shaped[test])))
            else:
                kept.append((test, *predicted(task, method, x, y, train, test, seed)))
            line = {"task": task, "method": method, "seed": seed, "fold": fold}
            print(json.dumps(line | {"cpu_seconds": round(time.process_time() - began, 1)}), flush=True)
        figures = summary_classes(y, kept) if task in CLASSES else summary_numbers(y, kept)
        row = {"task": task, "method": method, "seed": seed, "folds": len(kept)} | figures
        print(json.dumps(row), flush=True)
        with (HERE / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def summary_classes(y, kept):
    test = np.concatenate([fold[0] for fold in kept])
    p, truth = np.concatenate([fold[1] for fold in kept]), np.unique(y, return_inverse=True)[1][test]
    one_hot = np.eye(p.shape[1])[truth]
    auc = roc_auc_score(one_hot, p, average="macro")
    return {
        "auc": round(float(auc), 4),
        "log_score": round(-float(log_loss(truth, p)), 4),
        "accuracy": round(float((p.argmax(1) == truth).mean()), 4),
    }


def summary_numbers(y, kept):
    """Figures over all test data, each response in its own units; of a tensor response over all entries."""
    test = np.concatenate([fold[0] for fold in kept])
    mean, lower, upper = (None if kept[0][k] is None else np.concatenate([f[k] for f in kept]) for k in (1, 2, 3))
    truth, over = y[test], 0 if y.ndim == 2 else None
    error = ((mean - truth) ** 2).mean(axis=over)
    out = {
        "rmse": np.round(np.sqrt(error), 4).tolist(),
        "r2": np.round(1 - error / ((truth - truth.mean(0)) ** 2).mean(axis=over), 4).tolist(),
    }
    if lower is not None:
        out["coverage"] = np.round(((truth >= lower) & (truth <= upper)).mean(axis=over), 3).tolist()
        out["width"] = np.round((upper - lower).mean(axis=over), 3).tolist()
        out["log_score"] = round(float(np.average([f[4] for f in kept], weights=[len(f[0]) for f in kept])), 4)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=list(COVARIATE_SETS))
    parser.add_argument("--methods", nargs="+", default=["bayestensor"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=10)
    given = parser.parse_args()
    run(given.task, given.methods, given.seed, given.folds)
