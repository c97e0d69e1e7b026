"""Simulation-based calibration (Talts et al. 2018): where does the truth rank among posterior draws?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.stats

BINS = 8


def ranks(truth: np.ndarray, draws: np.ndarray, seed: int = 0) -> np.ndarray:
    """(rank of `truth[n]` among `draws[n, :]` + uniform) / (L + 1), ties broken at random: uniform if calibrated."""
    random = np.random.default_rng([2018, seed])  # another stream than the caller may use
    below, equal = (draws < truth[:, None]).sum(1), (draws == truth[:, None]).sum(1)
    return (below + random.integers(equal + 1) + random.random(len(truth))) / (draws.shape[1] + 1)


def p_values(uniform: np.ndarray) -> tuple[float, float, float]:
    """Of the mean and the variance of normal scores (shift, width), and chi-square over 8 bins (any shape)."""
    n, scores = len(uniform), scipy.stats.norm.ppf(uniform)
    shift = 2 * scipy.stats.norm.sf(abs(scores.mean()) * n**0.5)
    low = scipy.stats.chi2.cdf((scores**2).sum(), n)
    counts = np.histogram(uniform, BINS, (0, 1))[0]
    return shift, 2 * min(low, 1 - low), scipy.stats.chisquare(counts).pvalue


def smallest_p(statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> float:
    """Smallest p, times the number of tests (Holm's first step), over statistics name -> (truth[n], draws[n, L])."""
    p = [p for seed, pair in enumerate(statistics.values()) for p in p_values(ranks(*pair, seed))]
    return min(1.0, len(p) * min(p))
