"""How good a predictive distribution of numbers is: CRPS, intervals, relative error.

NumPy in, NumPy out. `samples` is (draws, ...), `y` and everything else the shape after the draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bayestensor.metrics.classification import LogLikelihood

__all__ = [
    "coverage",
    "crps_gaussian",
    "crps_mixture",
    "crps_samples",
    "gaussian_interval",
    "log_likelihood",
    "mixture_interval",
    "rrse",
    "sample_interval",
    "width",
]


def log_likelihood(log_densities: ArrayLike) -> LogLikelihood:
    """Mean log density a datum of the members' mixture, and the mean of the members' own, from (members, n).

    `mixture = mean over n of log(mean over members of exp(log_densities))`.
    """
    values = np.asarray(log_densities, np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"log_densities has shape {values.shape}; (members, n) is needed, with a member and a datum")
    mixed = np.logaddexp.reduce(values, axis=0) - np.log(len(values))
    return LogLikelihood(float(mixed.mean()), float(values.mean()))


def crps_gaussian(mean: ArrayLike, sd: ArrayLike, y: ArrayLike) -> float:
    """Mean continuous ranked probability score of N(mean, sd^2), in the units of y; lower is better.

    `sd (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))`, z = (y - mean) / sd (Gneiting and Raftery, JASA 102, 2007).
    """
    from scipy.special import ndtr

    mean, sd, y = _alike(mean=mean, sd=sd, y=y)
    if not (sd > 0).all():
        raise ValueError("every sd must be positive")
    z = (y - mean) / sd
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return float(np.mean(sd * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi))))


def crps_mixture(means: ArrayLike, sds: ArrayLike, y: ArrayLike) -> float:
    """Mean CRPS of the mixture over draws of N(means, sds^2), each (draws, ...); a scalar sd serves all.

    `mean_i A(y - m_i, s_i) - mean_ij A(m_i - m_j, sqrt(s_i^2 + s_j^2)) / 2`, `A(d, s) = d (2 Phi(d / s) - 1)
    + 2 s phi(d / s)` = E|N(d, s^2)| (Grimit, Gneiting, Berrocal, Johnson, Q. J. R. Meteorol. Soc. 132, 2006).
    Time grows with the square of the draws.
    """
    means, sds, y = _mixture(means, sds, y)
    score = _absolute(y - means, sds).mean(axis=0)
    for m, s in zip(means, sds, strict=True):
        score -= 0.5 * _absolute(m - means, np.hypot(s, sds)).mean(axis=0) / len(means)
    return float(score.mean())


def crps_samples(samples: ArrayLike, y: ArrayLike, fair: bool = False) -> float:
    """Mean CRPS from draws: `mean |X - y| - (1/2) mean |X - X'|`, in O(m log m) by sorting.

    By default the score of the draws' empirical distribution (X, X' over all m^2 pairs), which punishes a small m;
    `fair` uses the m (m - 1) pairs of different draws: unbiased for the law that the draws come from.
    """
    samples, y = _samples(samples, y)
    m = len(samples)
    if fair and m < 2:
        raise ValueError(f"the fair score needs at least 2 draws, not {m}")
    weights = 2 * np.arange(1, m + 1) - m - 1  # sum_{i<j} (x_(j) - x_(i)) = sum_k weight_k x_(k)
    spread = np.tensordot(weights.astype(np.float64), np.sort(samples, axis=0), axes=1)
    pairs = m * (m - 1) if fair else m * m
    return float(np.mean(np.abs(samples - y).mean(axis=0) - spread / pairs))


def gaussian_interval(mean: ArrayLike, sd: ArrayLike, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Central interval of N(mean, sd^2) with probability `level`: (lower, upper)."""
    from scipy.special import ndtri

    mean, sd = _alike(mean=mean, sd=sd)
    half = ndtri(0.5 + 0.5 * checked_level(level)) * sd
    return mean - half, mean + half


def mixture_interval(means: ArrayLike, sds: ArrayLike, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Central interval of the mixture over draws of N(means, sds^2), each (draws, ...): (lower, upper).

    The interval of a new datum; `sample_interval` of the means alone leaves the noise out. Newton's steps for
    `Phi^-1(F(x)) = Phi^-1(mass)`, F the mixture's distribution function: a straight line where the members are alike.
    """
    means, sds = np.asarray(means, np.float64), np.asarray(sds, np.float64)
    means, sds, _ = _mixture(means, sds, means[0] if means.ndim else means)
    tail = 0.5 * (1 - checked_level(level))
    return _mixture_quantile(means, sds, tail), _mixture_quantile(means, sds, 1 - tail)


def _mixture_quantile(means: np.ndarray, sds: np.ndarray, mass: float) -> np.ndarray:
    from scipy.special import ndtr, ndtri

    score = ndtri(mass)
    members = means + score * sds
    low, high = members.min(axis=0), members.max(axis=0)  # the mixture's quantile lies between its members'
    spread = np.sqrt((sds**2).mean(axis=0) + means.var(axis=0))
    x = np.clip(means.mean(axis=0) + score * spread, low, high)
    for _ in range(100):
        z = (x - means) / sds
        under, density = ndtr(z).mean(axis=0), (np.exp(-0.5 * z**2) / sds).mean(axis=0)
        low, high = np.where(under < mass, x, low), np.where(under < mass, high, x)
        with np.errstate(all="ignore"):  # far out Phi^-1 is infinite: no number, and halved below
            here = ndtri(under)
            new = x - (here - score) * np.exp(-0.5 * here**2) / density
            new = np.where((new >= low) & (new <= high), new, 0.5 * (low + high))
        done = (np.abs(new - x) <= 1e-10 * spread).all()
        x = new
        if done:
            break
    return x


def sample_interval(samples: ArrayLike, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Central interval between the quantiles of the draws: (lower, upper)."""
    tail = 0.5 * (1 - checked_level(level))
    lower, upper = np.quantile(np.asarray(samples, np.float64), [tail, 1 - tail], axis=0)
    return lower, upper


def coverage(lower: ArrayLike, upper: ArrayLike, y: ArrayLike) -> float:
    """Share of y inside `[lower, upper]`."""
    lower, upper, y = _alike(lower=lower, upper=upper, y=y)
    return float(np.mean((lower <= y) & (y <= upper)))


def width(lower: ArrayLike, upper: ArrayLike) -> float:
    """Mean of `upper - lower`: of two intervals that cover alike, the narrower is better."""
    lower, upper = _alike(lower=lower, upper=upper)
    return float(np.mean(upper - lower))


def rrse(prediction: ArrayLike, y: ArrayLike) -> float:
    """`||prediction - y|| / ||y||`, over the entries given (pass the hidden ones alone)."""
    prediction, y = _alike(prediction=prediction, y=y)
    size = np.linalg.norm(y.ravel())
    if size == 0:
        raise ValueError("y is all zeros: a relative error has no meaning")
    return float(np.linalg.norm((prediction - y).ravel()) / size)


def _alike(**arrays: ArrayLike) -> list[np.ndarray]:
    out = [np.asarray(array, np.float64) for array in arrays.values()]
    shapes = {name: array.shape for name, array in zip(arrays, out, strict=True)}
    if len({shape for shape in shapes.values() if shape}) > 1:  # a scalar goes with anything, nothing else broadcasts
        raise ValueError(f"shapes differ: {shapes}")
    if not all(array.size for array in out):
        raise ValueError(f"nothing to score: {shapes}")
    return out


def _absolute(d: np.ndarray, s: np.ndarray) -> np.ndarray:
    """E|N(d, s^2)|."""
    from scipy.special import ndtr

    z = d / s
    return d * (2 * ndtr(z) - 1) + 2 * s * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)


def _mixture(means: ArrayLike, sds: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    means, y = _samples(means, y)
    sds = np.asarray(sds, np.float64)
    if not (sds > 0).all() or sds.shape not in ((), means.shape[:1], means.shape):
        raise ValueError(
            f"sds of shape {sds.shape}: positive, one for all, one a draw, or {means.shape} like the means"
        )
    one_a_draw = sds.shape == means.shape[:1]
    sds = sds.reshape(-1, *[1] * y.ndim) if one_a_draw else sds
    return means, np.broadcast_to(sds, means.shape), y


def _samples(samples: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    samples, y = np.asarray(samples, np.float64), np.asarray(y, np.float64)
    if samples.ndim < 1 or samples.shape[1:] != y.shape or not samples.size:
        raise ValueError(f"samples has shape {samples.shape}, y {y.shape}; (draws, *shape of y) with a draw is needed")
    return samples, y


def checked_level(level: float) -> float:
    """The level of an interval, refused where it is no probability inside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; a probability between 0 and 1 is needed")
    return level
