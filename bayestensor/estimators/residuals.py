"""The law of the noise behind a Gaussian fit, read off its residuals: normal, or Student's t of the same variance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import opt_einsum

from bayestensor.estimators.inputs import Observed
from bayestensor.models.effects import CONSTANT
from bayestensor.tensor.network import Network

DEGREES = (3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0, 50.0)  # that are tried beside the normal law; 2 has no variance
_WORTH = 3.0  # of log likelihood, below which the law stays normal: one fit in 140 to normal noise gains more
_MOST_ENTRIES = 2000  # whose residuals are looked at: enough to tell 3 degrees of freedom from 4
_POINTS = 24  # scales that stand in for t's mixture
_MOST_LEVERAGE = 0.9


def noise_scales(df: float, n: int) -> np.ndarray:
    """n scales m whose laws N(0, m^2) mix to Student's t of variance 1: `m^2 = (1 - 2 / df) / g`.

    g is Gamma of shape and rate df / 2 (Andrews and Mallows, JRSS B 36, 1974, on scale mixtures).
    The quantiles of m at the middles of n equal parts, in the order of the golden ratio's multiples: any stretch of
    them (the draws of one chain) holds small and large ones alike. All 1 where df is infinite, the normal law.
    """
    from scipy.stats import gamma

    if math.isinf(df):
        return np.ones(n)
    ranks = np.argsort(np.argsort((np.arange(n) * 0.5 * (math.sqrt(5) - 1)) % 1))
    return np.sqrt((1 - 2 / df) / gamma.isf((ranks + 0.5) / n, 0.5 * df, scale=2 / df))


def left_out(
    values: np.ndarray, x: np.ndarray, noise: np.ndarray, weights: np.ndarray | float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(residual of each observation by the others, its noise's variance, leverage), chain by chain: [chain, n].

    A chain's draws of an entry's x have mean m and variance v. Were the chain Gaussian, then without the observation y
    of noise variance s^2 / w they would have

        mean y - (y - m) / (1 - h), variance s^2 / w h / (1 - h),   h = w v / s^2

    (Cook and Weisberg, Residuals and influence in regression, 1982, section 2.2).

    Args:
        values: (n,).
        x: draws of the tensor there, [chain, draw, n].
        noise: its standard deviation, [chain, draw], or [chain, draw, n].
        weights: of the values, (n,) or one number.
    """
    spread = x.var(axis=1, ddof=1) if x.shape[1] > 1 else np.zeros(x[:, 0].shape)
    variance = np.mean(noise**2, axis=1).reshape(len(x), -1) / weights
    h = np.minimum(spread / variance, _MOST_LEVERAGE)
    return (values - x.mean(axis=1)) / (1 - h), variance, h


def noise_degrees(values: np.ndarray, x: np.ndarray, noise: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
    """Degrees of freedom of the t that gives each observation, left out in turn, the highest density; inf: normal.

    The density is that of the chains in equal parts; the variance of the noise is the fit's, its shape alone is chosen
    here. Arguments as in `left_out`.
    """
    from scipy.special import logsumexp

    off, variance, h = left_out(values, x, noise, weights)

    def log_likelihood(df: float) -> float:
        squares = noise_scales(df, 1 if math.isinf(df) else _POINTS)[:, None, None] ** 2
        whole = variance * (squares + h / (1 - h))  # [point, chain, n]
        log_p = -0.5 * (np.log(2 * np.pi * whole) + off**2 / whole)
        return float((logsumexp(log_p, axis=(0, 1)) - math.log(len(squares) * len(x))).sum())

    found = {df: log_likelihood(df) for df in DEGREES}
    best = max(found, key=found.__getitem__)
    return best if found[best] > log_likelihood(math.inf) + _WORTH else math.inf


def fitted_degrees(fit: Any, given: Observed, values: np.ndarray, noise_by: int | None) -> float:
    """`noise_degrees` of a fit (`fitting.Fit`), by at most 2000 of its observations.

    Args:
        fit: what was fitted.
        given: its observations.
        values: theirs, in the fit's units, (n,).
        noise_by: the mode whose indices have a noise of their own, or None.
    """
    some = np.random.default_rng(0).choice(len(values), min(len(values), _MOST_ENTRIES), replace=False)
    at = np.pad(given.coords[some], ((0, 0), (0, len(fit.network.modes) - len(given.shape))))
    own = (
        [{n: row[k] for n, row in drawn.items()} for drawn in (fit.cores, fit.effects)] for k in range(len(fit.noise))
    )
    x = np.stack([entries_of(fit.network, cores, effects, at) for cores, effects in own])
    noise = fit.noise if noise_by is None else fit.noise[:, :, at[:, noise_by]]
    return noise_degrees(values[some], x, noise, 1.0 if given.weights is None else given.weights[some])


def entries_of(
    network: Network, cores: Mapping[str, np.ndarray], effects: Mapping[str, np.ndarray], at: np.ndarray
) -> np.ndarray:
    """Draws of the tensor [draw, n] at coordinates (n, modes). By NumPy: there is no program to compile."""
    place = {leg: k for k, leg in enumerate(network.modes)}
    draw, entry, *letters = (opt_einsum.get_symbol(k) for k in range(2 + len(network.bonds)))
    letter = dict(zip(network.bonds, letters, strict=True))
    terms, parts = [], []
    for core in network.cores:
        bonds, modes = (
            [k for k, leg in enumerate(core.legs) if (leg in place) == is_mode] for is_mode in (False, True)
        )
        array = np.asarray(cores[core.name], np.float64).transpose(0, *(k + 1 for k in bonds + modes))
        own = tuple(at[:, place[core.legs[k]]] for k in modes)
        parts.append(array[(slice(None),) * (1 + len(bonds)) + own])
        terms.append(draw + "".join(letter[core.legs[k]] for k in bonds) + entry * bool(modes))
    x = np.asarray(opt_einsum.contract(f"{','.join(terms)}->{draw}{entry}", *parts))
    for name, row in effects.items():
        x = x + (row[:, None] if name == CONSTANT else row[:, at[:, place[name]]])
    return x
