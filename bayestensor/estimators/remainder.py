"""What a low-rank coefficient leaves of the response: a Gaussian process over the covariates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bayestensor.models.regression import RATIOS

KINDS = ("auto", "linear", "smooth", None)
_LENGTHS = np.geomspace(0.3, 100.0, 8)  # of the smooth kernel, in units of the covariates' root mean square distance
_MOST_POINTS = 1000  # above this the n x n kernels of 'auto' are not tried


@dataclass(frozen=True, eq=False)
class Remainder:
    """A centred kernel of mean variance 1 on the training covariates: its spectrum, and what evaluates it elsewhere.

    Attributes:
        kind: 'linear', 'smooth' (squared exponential), or None: no remainder, the vectors then only compress the data.
        vectors: (n, m) orthonormal.
        spectrum: (m,), zero where there is no remainder.
        length: of the smooth kernel.
        weights: of the columns of x in the kernel.
    """

    kind: str | None
    vectors: np.ndarray
    spectrum: np.ndarray
    length: float = 0.0
    weights: np.ndarray | float = 1.0
    _parts: dict[str, Any] = field(default_factory=dict, repr=False)

    def at(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(kernel of x with the training data, in its eigenvectors (n, m); kernel of each x with itself (n,))."""
        x = x * self.weights
        if self.kind == "linear":
            return (x @ self._parts["right"].T) * self._parts["singular"], (x**2).sum(axis=1)
        if self.kind == "smooth":
            train, means, mean, size = (self._parts[name] for name in ("x", "means", "mean", "size"))
            kernel = _squared_exponential(x, train, self.length)
            own = kernel.mean(axis=1, keepdims=True)
            return (kernel - own - means[None] + mean) @ self.vectors / size, (1 - 2 * own[:, 0] + mean) / size
        return np.zeros((len(x), len(self.spectrum))), np.zeros(len(x))


def check_remainder(kind: Any) -> None:
    """Refuse what names no kind.

    Raises:
        ValueError: see above.
    """
    if kind not in KINDS:
        raise ValueError(f"remainder is {kind!r}; one of {KINDS} is needed")


def build_remainder(kind: str | None, x: np.ndarray, y: np.ndarray) -> Remainder:
    """The remainder asked for, for centred covariates (n, p) of mean square norm 1 and centred responses (n, k).

    The kernel is the one with the highest evidence for a remainder and noise alone, summed over responses: of columns
    as they are or all of variance 1, and of 'auto' linear or smooth (linear alone for more than 1000 data), smooth of
    one of eight lengths.
    """
    if kind is not None:
        tried = []
        for weights in (1.0, _equalising(x)):
            if kind != "smooth":
                tried.append(_linear(x, weights))
            if kind == "smooth" or (kind == "auto" and len(x) <= _MOST_POINTS):
                tried += [_smooth(x, length, weights) for length in _LENGTHS]
        return max(tried, key=lambda remainder: log_evidence(remainder, y))
    if len(x) - 1 <= x.shape[1]:
        return Remainder(None, np.eye(len(x)), np.zeros(len(x)))
    vectors, singular, _ = np.linalg.svd(x, full_matrices=False)
    rank = _rank(singular)
    return Remainder(None, vectors[:, :rank], np.zeros(rank))


def log_evidence(remainder: Remainder, y: np.ndarray) -> float:
    """`log p(y)` of a remainder and noise alone, the noise integrated out, averaged over `RATIOS`; up to a constant."""
    squares = (remainder.vectors.T @ y) ** 2
    lost = np.maximum((y**2).sum(axis=0) - squares.sum(axis=0), 0)
    spread = 1 + RATIOS[:, None] * remainder.spectrum[None]
    energy = np.maximum(lost[None] + (1 / spread) @ squares, np.finfo(float).tiny)
    log_p = -0.5 * np.log(spread).sum(axis=1, keepdims=True) - 0.5 * (len(y) - 1) * np.log(energy)
    return float(np.logaddexp.reduce(log_p, axis=0).sum())


def _equalising(x: np.ndarray) -> np.ndarray:
    """Weights after which every column has variance 1 / p; 0 for a constant one."""
    sd = np.sqrt((x**2).mean(axis=0))
    alive = sd > 1e-10 * sd.max()
    return np.where(alive, 1 / np.where(alive, sd, 1.0), 0.0) / np.sqrt(max(alive.sum(), 1))


def _linear(x: np.ndarray, weights: np.ndarray | float) -> Remainder:
    x = x * weights
    vectors, singular, right = np.linalg.svd(x, full_matrices=False)
    rank = _rank(singular)
    parts = {"singular": singular[:rank], "right": right[:rank]}
    return Remainder("linear", vectors[:, :rank], singular[:rank] ** 2, 0.0, weights, parts)


def _smooth(x: np.ndarray, length: float, weights: np.ndarray | float) -> Remainder:
    x = x * weights
    kernel = _squared_exponential(x, x, length)
    means, mean = kernel.mean(axis=0), float(kernel.mean())
    spectrum, vectors = np.linalg.eigh(kernel - means[:, None] - means[None] + mean)
    size = 1 - mean if mean < 1 - 1e-12 else 1.0  # mean variance of the data: afterwards 1, as the linear kernel's is
    kept = spectrum > 10 * len(x) * np.finfo(float).eps  # entries of size 1 have cancelled: below is rounding
    spectrum = spectrum / size
    kept[-1] = True
    parts = {"x": x, "means": means, "mean": mean, "size": size}
    return Remainder("smooth", vectors[:, kept], np.maximum(spectrum[kept], 0), length, weights, parts)


def _squared_exponential(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return np.exp(-cdist(a, b, "sqeuclidean") / (4 * length**2))  # 2 is the covariates' mean square distance


def _rank(singular: np.ndarray) -> int:
    return max(1, int((singular > singular[0] * max(len(singular), 100) * np.finfo(float).eps).sum()))
