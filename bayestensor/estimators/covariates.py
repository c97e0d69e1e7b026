"""Tensor covariates and responses as arrays of rows, in units in which the priors are meant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayestensor.models.rows import CORRELATIONS
from bayestensor.tensor.network import Network

_MOST_DIRECTIONS = 64  # coordinates of one covariate mode


@dataclass(frozen=True, eq=False)
class Units:
    """`(x - mean) / scale`: covariates (or responses) about their mean, in units of `scale`."""

    mean: np.ndarray
    scale: np.ndarray | float

    def into(self, x: np.ndarray) -> np.ndarray:
        """From the user's units."""
        return (x - self.mean) / self.scale


def read_covariates(
    estimator: Any, x: Any, fitted: tuple[int, ...] | None = None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """(covariates (n, p), shape of one covariate tensor), checked as scikit-learn does.

    Args:
        estimator: with the parameter `shape`; learns `n_features_in_`.
        x: (n, *shape), or flat (n, p).
        fitted: the shape that the fit had, at prediction.

    Raises:
        ValueError: x has another shape than the parameter or the fit, holds NaN or infinities, or is too little.
    """
    from sklearn.utils.validation import validate_data

    shape = fitted or checked_shape(estimator.shape)
    axes = getattr(x, "shape", None) or np.asarray(x).shape
    own = tuple(int(n) for n in axes[1:])
    if len(axes) > 2:
        if shape is not None and own != shape:
            wanted = f"the fit had {shape}" if fitted else f"shape={shape} is asked for"
            raise ValueError(f"one covariate tensor has shape {own}; {wanted}")
        x, shape = np.asarray(x).reshape(axes[0], -1), own
    elif len(axes) == 2 and shape is not None and fitted is None and math.prod(shape) != axes[1]:
        raise ValueError(f"X has {axes[1]} columns; shape={shape} needs {math.prod(shape)}")
    x = validate_data(estimator, x, reset=fitted is None, dtype=np.float64, ensure_min_samples=1 if fitted else 2)
    return x, shape or (x.shape[1],)


def checked_shape(shape: Any) -> tuple[int, ...] | None:
    """The parameter `shape` as a tuple.

    Raises:
        ValueError: it is neither None nor whole numbers of at least 1.
    """
    if shape is None:
        return None
    try:
        sizes = tuple(shape)
    except TypeError:
        sizes = ()
    whole = [isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 1 for n in sizes]
    if not sizes or not all(whole):
        raise ValueError(f"shape is {shape!r}; None or the sizes of one covariate tensor, such as (571, 7), is needed")
    return tuple(int(n) for n in sizes)


def read_response(y: Any, n: int) -> np.ndarray:
    """The responses of n data as float64.

    Raises:
        ValueError: none given, another length, NaN or infinities, or what are no numbers.
    """
    from sklearn.utils.validation import _check_y, check_consistent_length

    if y is None:
        raise ValueError("requires y to be passed, but the target y is None")
    y = y if hasattr(y, "shape") else np.asarray(y)
    axes = y.shape
    flat = _check_y(np.asarray(y).reshape(axes[0], -1) if len(axes) > 2 else y, multi_output=True, y_numeric=True)
    check_consistent_length(np.empty(n), flat)
    return np.asarray(flat, np.float64).reshape(axes)


def gathered(x: np.ndarray, y: np.ndarray, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, y, weight) of the data that differ, in lexical order: a datum seen k times is one of weight k.

    Data of weight 0 are left out. What is made of the result depends on neither the order of the data nor on whether
    they are weighted or repeated, and nothing is cross-validated against its own copy.

    Args:
        x: (n, p).
        y: (n, k).
        sample_weight: (n,), one number, or None for 1.

    Raises:
        ValueError: another shape, weights that are negative, infinite or all 0.
    """
    from sklearn.utils.validation import _check_sample_weight

    weight = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
    if not weight.any():
        raise ValueError("every sample weight is zero; a weight is how many data one stands for: some must be above 0")
    bits = (np.concatenate([x, y], axis=1) + 0.0).view(np.int64)  # -0 has become 0
    rows = np.where(bits < 0, ~bits, bits ^ np.int64(-(2**63))).astype(">i8")  # bytes sort as numbers, in any units
    places: dict[bytes, list[int]] = {}
    for k in np.flatnonzero(weight):
        places.setdefault(rows[k].tobytes(), []).append(int(k))
    groups = [places[name] for name in sorted(places)]
    first = [group[0] for group in groups]
    return x[first], y[first], np.array([weight[group].sum() for group in groups])


def covariate_units(x: np.ndarray, weight: np.ndarray | None = None) -> Units:
    """Means out, and one scale for all: afterwards the mean of `||x_n||^2` is 1. A tensor keeps its low rank."""
    mean = np.average(x, axis=0, weights=weight)
    return Units(mean, _size(x - mean, weight) * math.sqrt(x.shape[1]))


def response_units(y: np.ndarray, weight: np.ndarray | None = None) -> Units:
    """Every response about its mean, in units of its standard deviation (1 where it is constant)."""
    mean = np.average(y, axis=0, weights=weight)
    return Units(mean, np.array([_size(column[:, None], weight) for column in (y - mean).T]))


def _size(values: np.ndarray, weight: np.ndarray | None) -> float:
    """Root mean square of (n, k), without overflow; 1 for zeros (and for what rounding leaves of a constant)."""
    largest = np.abs(values).max()
    if not largest > 0:
        return 1.0
    return float(largest * np.sqrt(np.average(((values / largest) ** 2).mean(axis=1), weights=weight)))


def mode_bases(x: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """For each covariate mode an orthonormal (size, m): the directions in which the covariates vary at all.

    Directions with less than 1e-10 of the energy are left out, up to a multiple of 8 (so that folds of one data set
    share a compiled program), and the weakest beyond 64. W has no say about the rest: a factor of 571 smooth
    wavelengths is one of some dozen coordinates.
    """
    tensor, bases = x.reshape(-1, *shape), []
    for k, size in enumerate(shape):
        unfolding = np.moveaxis(tensor, k + 1, 0).reshape(size, -1)
        if size <= unfolding.shape[1]:
            energy, vectors = np.linalg.eigh(unfolding @ unfolding.T)
            energy, vectors = energy[::-1], vectors[:, ::-1]
        else:
            vectors, singular, _ = np.linalg.svd(unfolding, full_matrices=False)
            energy = singular**2
        m = min(_rounded(int((energy > 1e-10 * energy.sum()).sum()), 8), _MOST_DIRECTIONS, len(energy))
        bases.append(np.eye(size) if m == size else np.ascontiguousarray(vectors[:, :m]))
    return bases


def project(x: np.ndarray, shape: tuple[int, ...], bases: list[np.ndarray]) -> np.ndarray:
    """Covariates (n, *m) in the coordinates of the bases."""
    tensor = x.reshape(-1, *shape)
    for k, basis in enumerate(bases):
        if basis.shape[0] != basis.shape[1]:
            tensor = np.moveaxis(np.tensordot(tensor, basis, axes=(k + 1, 0)), -1, k + 1)
    return tensor


def in_network(x: np.ndarray, shape: tuple[int, ...], bases: list[np.ndarray], network: Network) -> np.ndarray:
    """Covariates (n, p) as the network takes them: in the bases, with its row modes as axes."""
    return project(x, shape, bases).reshape(-1, *network.shape[: len(network.rows)])


def expand(weight: np.ndarray, bases: list[np.ndarray]) -> np.ndarray:
    """A coefficient over the bases (its first modes) as one over the covariates."""
    for k, basis in enumerate(bases):
        if basis.shape[0] != basis.shape[1]:
            weight = np.moveaxis(np.tensordot(weight, basis, axes=(k, 1)), -1, k)
    return weight


def autoregressions(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(roots, inverse roots, log determinants) of `basis^T K basis`, `K[i, j] = rho^|i - j|`, rho one of CORRELATIONS.

    `K = L L^T` with `L[i, j] = rho^(i - j) sqrt(1 - rho^2)`, its first column `rho^i`: L^T basis is a recursion.
    """
    from scipy.linalg import solve_triangular
    from scipy.signal import lfilter

    roots = []
    for rho in CORRELATIONS:
        filtered = lfilter([1.0], [1.0, -rho], basis[::-1], axis=0)[::-1].copy()
        filtered[1:] *= math.sqrt(1 - rho**2)
        triangle = np.asarray(np.linalg.qr(filtered, mode="r")).T
        roots.append(triangle * np.sign(np.diagonal(triangle))[None])
    inverses = [solve_triangular(root, np.eye(len(root)), lower=True) for root in roots]
    return np.stack(roots), np.stack(inverses), np.log([np.diagonal(root) for root in roots]).sum(axis=1)


def filled(array: np.ndarray, axes: tuple[int, ...] = (0,), step: int = 32) -> np.ndarray:
    """Zeros added up to a multiple of `step`: inert data, so that folds of nearly one size share a compiled program."""
    widths = [(0, _rounded(n, step) - n if k in axes else 0) for k, n in enumerate(array.shape)]
    return np.pad(array, widths)


def _rounded(n: int, step: int) -> int:
    return max(1, -(-n // step)) * step


def seed_of(random_state: Any) -> int:
    """One whole number below 2^31 from scikit-learn's `random_state`."""
    from sklearn.utils import check_random_state

    return int(check_random_state(random_state).randint(2**31))
