"""What TensorRegressor and TensorClassifier are compared with: each fits, predicts and chooses on training data alone.

Ridge, PLS, logistic regression and isotropic kernels see covariates only through inner products, so that each gets
them in the coordinates of the training data's principal components: all of them, which is exact and a lot quicker.
"""

from __future__ import annotations

import numpy as np
from sklearn.cross_decomposition import PLSRegression
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, ParameterGrid, StratifiedKFold, TimeSeriesSplit
from sklearn.preprocessing import StandardScaler

from bayestensor.estimators.covariates import covariate_units, mode_bases, project

GRIDS = {
    "pls": {"n_components": [1, 2, 3, 5, 7, 10, 14, 18, 22]},
    "ridge": {"alpha": np.geomspace(1e-7, 1e6, 27)},
    "logistic": {"C": np.geomspace(1e-6, 1e3, 10)},
}
BASELINES = {"regression": ("pls", "ridge", "gp"), "classes": ("logistic", "gp")}
TENSORLY = [
    f"tensorly {kind} {rank} {penalty}"
    for kind in ("cp", "tucker")
    for rank in (1, 2, 3, 5)
    for penalty in (1e-4, 1e-2, 1)
]


def rotated(x, x_new, with_std):
    """Both in the principal components of x, its columns centred (and standardised)."""
    scaler = StandardScaler(with_std=with_std).fit(x)
    x, x_new = scaler.transform(x), scaler.transform(x_new)
    if x.shape[1] <= x.shape[0]:
        return x, x_new
    size = np.sqrt((x**2).sum() / len(x)) if not with_std else 1.0  # penalties are in units of the whole spectrum
    _, singular, right = np.linalg.svd(x, full_matrices=False)
    right = right[singular > 1e-12 * singular[0]]
    return x @ right.T / size, x_new @ right.T / size


def tuned(method, x, y, x_new, ordered=False):
    """Predictions at x_new: scaling and parameters by inner cross-validation, refitted on all of x."""
    make = {"pls": _pls, "ridge": _ridge, "logistic": _logistic}[method]
    classes = method == "logistic"
    folds = TimeSeriesSplit(3, test_size=12) if ordered else StratifiedKFold if classes else KFold
    folds = folds if ordered else folds(5, shuffle=True, random_state=0)
    losses = {}
    for train, test in folds.split(x, y if classes else None):
        for with_std in (False, True):
            a, b = rotated(x[train], x[test], with_std)
            for k, params in enumerate(ParameterGrid(GRIDS[method])):
                found = make(params, a, y[train], b)
                loss = log_loss(y[test], found, labels=np.unique(y)) if classes else ((found - y[test]) ** 2).mean()
                losses.setdefault((with_std, k), []).append(loss)
    with_std, k = min(losses, key=lambda key: np.mean(losses[key]))
    a, b = rotated(x, x_new, with_std)
    return make(list(ParameterGrid(GRIDS[method]))[k], a, y, b)


def _pls(params, x, y, x_new):
    components = min(params["n_components"], *x.shape)
    return PLSRegression(components, scale=False).fit(x, y).predict(x_new).reshape(-1, *y.shape[1:])


def _ridge(params, x, y, x_new):
    return Ridge(**params).fit(x, y).predict(x_new)


def _logistic(params, x, y, x_new):
    return LogisticRegression(**params, max_iter=2000).fit(x, y).predict_proba(x_new)


def gaussian_process(x, y, x_new):
    """(mean, sd): squared exponential and noise by maximum likelihood, and so the scaling of the columns."""
    fits = []
    for with_std in (False, True):
        a, b = rotated(x, x_new, with_std)
        size = np.sqrt((a**2).sum(1).mean())
        kernel = ConstantKernel(1.0, (1e-3, 1e6)) * RBF(1.0, (1e-2, 1e3)) + WhiteKernel(0.1, (1e-8, 10))
        model = GaussianProcessRegressor(kernel, normalize_y=True).fit(a / size, y)
        fits.append((model.log_marginal_likelihood_value_, model, b / size))
    _, model, b = max(fits, key=lambda fit: fit[0])
    return model.predict(b, return_std=True)


def gaussian_process_classes(x, y, x_new):
    """Probabilities: squared exponential, by Laplace's approximation, on standardised columns."""
    a, b = rotated(x, x_new, True)
    size = np.sqrt((a**2).sum(1).mean())
    kernel = ConstantKernel(1.0, (1e-3, 1e4)) * RBF(1.0, (1e-2, 1e3))
    return GaussianProcessClassifier(kernel, random_state=0).fit(a / size, y).predict_proba(b / size)


def tensorly(method, x, y, x_new):
    """TensorLy's regressor of one kind, rank and penalty, 'tensorly cp 3 0.01'; data centred and scaled.

    In the modes' bases, where its least squares are the same and its factors 571 entries shorter.
    """
    from tensorly.regression import CPRegressor, TuckerRegressor

    _, kind, rank, penalty = method.split()
    shape, flat = x.shape[1:], x.reshape(len(x), -1)
    units = covariate_units(flat)
    bases = mode_bases(units.into(flat), shape)
    a, b = (project(units.into(z.reshape(len(z), -1)), shape, bases) for z in (x, x_new))
    mean, sd = y.mean(), y.std()
    given = {"tol": 1e-6, "n_iter_max": 100, "reg_W": float(penalty), "verbose": 0}
    if kind == "cp":
        model = CPRegressor(weight_rank=int(rank), **given)
    else:
        model = TuckerRegressor([min(int(rank), n) for n in a.shape[1:]], **given)
    np.random.seed(0)  # noqa: NPY002  (the library draws its start from the global state)
    model.fit(a, (y - mean) / sd)
    return np.asarray(model.predict(b)).ravel() * sd + mean
