"""Observed entries that a fit does not see: to choose a format, and to correct intervals where the model is wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import clone

from bayestensor.estimators.inputs import Observed

AUTO_FORMATS = ("cp", "tucker", "tensor_train")
_SHARE = 0.1  # of the entries, held out to choose a format by


def held_out(given: Observed, share: float, by: Any, seed: int) -> np.ndarray:
    """Which observations to hold out, [n] of bools.

    Args:
        given: the observations.
        share: of the entries, or of the fibres.
        by: 'random' for entries, or a mode for whole fibres along it (all entries that differ in that mode alone), as
            a sensor that is away for all times.
        seed: of the choice.

    Raises:
        ValueError: `by` is neither, or nothing would be held out, or everything.
    """
    rng, groups = np.random.default_rng(seed), np.arange(len(given.values))
    if by != "random":
        if isinstance(by, (bool, str)) or by not in range(len(given.shape)):
            raise ValueError(f"conformal_by is {by!r}; 'random' or a mode from 0 to {len(given.shape) - 1} is needed")
        others = np.delete(given.coords, by, axis=1)
        groups = np.unique(others, axis=0, return_inverse=True)[1].reshape(-1)
    count = int(groups.max()) + 1
    out = np.zeros(count, bool)
    out[rng.permutation(count)[: math.ceil(share * count)]] = True
    held = out[groups]
    if not held.any() or held.all():
        raise ValueError(
            f"holding out {share} of {count} {'entries' if by == 'random' else 'fibres'} leaves none or all of them"
        )
    return held


def part(given: Observed, rows: np.ndarray) -> Observed:
    """Some of the observations."""
    weights = None if given.weights is None else given.weights[rows]
    return replace(given, coords=given.coords[rows], values=given.values[rows], weights=weights)


def normalised_residuals(model: Any, held: Observed) -> np.ndarray:
    """`|y - mean| / sd` of entries that the fit has not seen, ascending; sd is that of an observation."""
    mean, sd = model.predict(held.coords, return_std=True)
    return np.sort(np.abs(held.values - mean) / sd)


def conformal_quantile(residuals: np.ndarray, level: float) -> float:
    """The ceil((n + 1) level)-th smallest of n: what a further one stays below with probability `level` or more.

    Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005; Lei et al., JASA 113, 2018.

    Raises:
        ValueError: too few residuals for the level.
    """
    rank = math.ceil((len(residuals) + 1) * level)
    if rank > len(residuals):
        raise ValueError(f"{len(residuals)} held-out entries are too few for a level of {level}; hold out more")
    return float(residuals[rank - 1])


def format_scores(model: Any, given: Observed, seed: int) -> dict[str, float]:
    """Mean log density that each of AUTO_FORMATS, fitted to nine tenths of the entries, gives the others."""
    rows = held_out(given, _SHARE, "random", seed)
    shown, held = part(given, ~rows), part(given, rows)
    scores = {}
    for name in AUTO_FORMATS:
        fit = clone(model).set_params(format=name, conformal=0.0, random_state=seed)
        fit.fit(shown.coords, shown.values, shown.shape, sample_weight=shown.weights)
        scores[name] = fit.score(held.coords, held.values)
    return scores
