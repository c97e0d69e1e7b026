"""How good a predictive distribution of numbers is: CRPS, intervals, relative error.

NumPy in, NumPy out. `samples` is (draws, ...), `y` and everything else the shape after the draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["coverage", "crps_gaussian", "crps_samples", "gaussian_interval", "rrse", "sample_interval", "width"]


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
    half = ndtri(0.5 + 0.5 * _level(level)) * sd
    return mean - half, mean + half


def sample_interval(samples: ArrayLike, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Central interval between the quantiles of the draws: (lower, upper)."""
    tail = 0.5 * (1 - _level(level))
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


def _samples(samples: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    samples, y = np.asarray(samples, np.float64), np.asarray(y, np.float64)
    if samples.ndim < 1 or samples.shape[1:] != y.shape or not samples.size:
        raise ValueError(f"samples has shape {samples.shape}, y {y.shape}; (draws, *shape of y) with a draw is needed")
    return samples, y


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; a probability between 0 and 1 is needed")
    return level
