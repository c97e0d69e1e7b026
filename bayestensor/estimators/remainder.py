"""What a low-rank coefficient leaves of the response: a Gaussian process over the covariates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bayestensor.models.regression import RATIOS

KINDS = ("auto", "linear", "smooth", None)
LENGTHS = np.geomspace(0.3, 100.0, 8)  # of the smooth kernel, in units of the covariates' root mean square distance
_MOST_POINTS = 1000  # above this the n x n kernels of 'auto' are not tried


@dataclass(frozen=True, eq=False)
class Remainder:
    """A centred kernel of mean variance 1 on the training covariates: its spectrum, and what evaluates it elsewhere.

    Data of weights w are multiplied by sqrt(w), which gives their noise one variance: the kernel of these has the
    entries `sqrt(w_i) k_ij sqrt(w_j)`. Means are weighted.

    Attributes:
        kind: 'linear', 'smooth' (squared exponential), or None: no remainder, the vectors then only compress the data.
        vectors: (n, m) orthonormal.
        spectrum: (m,), zero where there is no remainder.
        half: (n,) roots of the weights.
        length: of the smooth kernel.
        weights: of the columns of x in the kernel, or a matrix (p, k) that they are multiplied by.
        trend: of the smooth kernel, how many times its variance a linear one adds to it.
    """

    kind: str | None
    vectors: np.ndarray
    spectrum: np.ndarray
    half: np.ndarray
    length: float = 0.0
    weights: np.ndarray | float = 1.0
    trend: float = 0.0
    _parts: dict[str, Any] = field(default_factory=dict, repr=False)

    def at(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(kernel of x with the training data, in its eigenvectors (n, m); kernel of each x with itself (n,))."""
        z = weighted(x, self.weights)
        if self.kind == "linear":
            return (z @ self._parts["right"].T) * self._parts["singular"], (z**2).sum(axis=1)
        if self.kind == "smooth":
            train, means, mean, size, trained = (self._parts[name] for name in ("x", "means", "mean", "size", "plain"))
            kernel = _squared_exponential(z, train, self.length)
            mine = kernel @ self._parts["part"][:, None]
            kernel, own = (kernel - mine - means[None] + mean) / size, (1 - 2 * mine[:, 0] + mean) / size
            if self.trend:
                kernel, own = kernel + self.trend * (x @ trained.T), own + self.trend * (x**2).sum(axis=1)
            return (kernel * self.half[None]) @ self.vectors / (1 + self.trend), own / (1 + self.trend)
        return np.zeros((len(x), len(self.spectrum))), np.zeros(len(x))


class Plan(NamedTuple):
    """A kernel to be built: of columns 'plain', 'equal' in variance or the 'leading' components; 0 means linear."""

    columns: str
    length: float
    trend: float = 0.0


def check_remainder(kind: Any) -> None:
    """Refuse what names no kind.

    Raises:
        ValueError: see above.
    """
    if kind not in KINDS:
        raise ValueError(f"remainder is {kind!r}; one of {KINDS} is needed")


def build_remainder(kind: str | None, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Remainder:
    """The remainder asked for, for centred covariates (n, p) of mean square norm 1 and centred responses (n, k).

    The kernel is the one with the highest evidence for a remainder and noise alone, summed over responses: of columns
    as they are or all of variance 1, and of 'auto' linear or smooth (linear alone for more than 1000 data), smooth of
    one of eight lengths.
    """
    if kind is not None:
        lengths = [0.0] if kind != "smooth" else []
        lengths += [*LENGTHS] if kind == "smooth" or (kind == "auto" and len(x) <= _MOST_POINTS) else []
        tried = [build(Plan(columns, length), x, weight) for columns in ("plain", "equal") for length in lengths]
        return max(tried, key=lambda remainder: log_evidence(remainder, y))
    half = np.sqrt(weight)
    if len(x) - 1 <= x.shape[1]:
        return Remainder(None, np.eye(len(x)), np.zeros(len(x)), half)
    vectors, singular, _ = np.linalg.svd(half[:, None] * x, full_matrices=False)
    rank = _rank(singular)
    return Remainder(None, vectors[:, :rank], np.zeros(rank), half)


def build(plan: Plan, x: np.ndarray, weight: np.ndarray) -> Remainder:
    """The kernel of a plan for centred covariates (n, p) of weights (n,)."""
    half, columns = np.sqrt(weight), {"equal": equalising, "leading": _leading}
    weights: Any = columns[plan.columns](x, weight) if plan.columns in columns else 1.0
    return _smooth(x, half, plan.length, weights, plan.trend) if plan.length else _linear(x, half, weights)


def log_evidence(remainder: Remainder, y: np.ndarray) -> float:
    """`log p(y)` of a remainder and noise alone, the noise integrated out, averaged over `RATIOS`; up to a constant."""
    log_p, _, _ = of_ratios(remainder, y)
    return float(np.logaddexp.reduce(log_p, axis=0).sum())


def of_ratios(remainder: Remainder, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `RATIOS` and response (log p(y), residual energy) up to a constant, and y in the eigenvectors."""
    y = remainder.half[:, None] * y
    turned = remainder.vectors.T @ y
    lost = np.maximum((y**2).sum(axis=0) - (turned**2).sum(axis=0), 0)
    spread = 1 + RATIOS[:, None] * remainder.spectrum[None]
    energy = np.maximum(lost[None] + (1 / spread) @ turned**2, np.finfo(float).tiny)
    count = (remainder.half**2).sum() - 1
    log_p = -0.5 * np.log(spread).sum(axis=1, keepdims=True) - 0.5 * count * np.log(energy)
    return log_p, energy, turned


def equalising(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Factors after which every column has variance 1 / p; 0 for a constant one."""
    sd = np.sqrt(np.average(x**2, axis=0, weights=weight))
    alive = sd > 1e-10 * sd.max()
    return np.where(alive, 1 / np.where(alive, sd, 1.0), 0.0) / np.sqrt(max(alive.sum(), 1))


def weighted(x: np.ndarray, weights: np.ndarray | float) -> np.ndarray:
    """Covariates as a kernel takes them."""
    return x @ weights if np.ndim(weights) == 2 else x * weights


def _leading(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(p, n / 8): the leading principal components, each with the root of its standard deviation.

    Half of the way to whitening: what matters in spectra is often a small part of their variance. Fewer than the data
    by far, because trailing directions of one sample are not those of the next.
    """
    _, singular, right = np.linalg.svd(np.sqrt(weight)[:, None] * x, full_matrices=False)
    k = min(_rank(singular), max(2, len(x) // 8))
    scores = np.sqrt(singular[:k] / weight.sum() ** 0.5)  # standard deviations, their roots
    return (right[:k] / scores[:, None] / np.sqrt((scores**2).sum())).T


def _linear(x: np.ndarray, half: np.ndarray, weights: np.ndarray | float) -> Remainder:
    vectors, singular, right = np.linalg.svd(half[:, None] * weighted(x, weights), full_matrices=False)
    rank = _rank(singular)
    parts = {"singular": singular[:rank], "right": right[:rank]}
    return Remainder("linear", vectors[:, :rank], singular[:rank] ** 2, half, 0.0, weights, 0.0, parts)


def _smooth(x: np.ndarray, half: np.ndarray, length: float, weights: np.ndarray | float, trend: float) -> Remainder:
    z, part = weighted(x, weights), half**2 / (half**2).sum()
    kernel = _squared_exponential(z, z, length)
    means = kernel @ part
    mean = float(means @ part)
    size = 1 - mean if mean < 1 - 1e-12 else 1.0  # mean variance of the data: afterwards 1, as the linear kernel's is
    whole = kernel - means[:, None] - means[None] + mean
    whole = whole + trend * size * (x @ x.T) if trend else whole
    spectrum, vectors = np.linalg.eigh(half[:, None] * whole * half[None])
    rounding = 10 * (half**2).sum() * np.finfo(float).eps  # entries of size 1 have cancelled
    kept = spectrum > rounding
    kept[-1] = True
    spectrum = np.maximum(spectrum[kept], 0) / (size * (1 + trend))
    parts = {"x": z, "part": part, "means": means, "mean": mean, "size": size, "plain": x if trend else None}
    return Remainder("smooth", vectors[:, kept], spectrum, half, length, weights, trend, parts)


def _squared_exponential(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return np.exp(-cdist(a, b, "sqeuclidean") / (4 * length**2))  # 2 is the covariates' mean square distance


def _rank(singular: np.ndarray) -> int:
    return max(1, int((singular > singular[0] * max(len(singular), 100) * np.finfo(float).eps).sum()))
