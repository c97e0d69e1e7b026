"""Several kernels of a remainder, weighed by how well their mixture predicts data left out."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

from bayestensor.estimators.remainder import LENGTHS, Plan, Remainder, build, equalising, log_evidence, of_ratios
from bayestensor.models.coefficient import generator
from bayestensor.models.compiled import quick_jit
from bayestensor.models.regression import RATIOS, Centred, noise_numbers, pick_noise
from bayestensor.tensor.design import responses
from bayestensor.tensor.network import Network

FEWEST, MOST = 30, 500  # data: with fewer no folds, with more the kernels of all folds take too long
_FOLDS = 5
_BEST = 3  # plans of each family, by evidence, that are cross-validated
_TREND = 100.0
_WORTH = 0.5  # log density that a kernel more must bring
SPREADS = (1.0, 0.9, 0.8, 0.7, 0.6)
_HANDFULS = 16  # of draws that are dealt to the kernels


def stacked(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[list[tuple[float, Remainder]], np.ndarray]:
    """(weight, remainder) of the kernels whose mixture has the highest cross-validated density, and spreads.

        max over w, c of sum_i log sum_m w_m p_m(y_i | data of the other folds, c),   w >= 0, sum w = 1

    (Yao, Vehtari, Simpson, Gelman, Bayesian Analysis 13, 2018), by expectation maximisation; p_m is that of remainder
    and noise alone. In four families - columns as they are, of equal variance, leading principal components without and
    with a linear trend - the plans of highest evidence stand for election. The standard deviations of response k are
    multiplied by its spread c[k]: a mixture of calibrated densities is wider than calibrated (Gneiting, Ranjan,
    Electronic Journal of Statistics 7, 2013).

    Args:
        x: (n, p) centred covariates of mean square norm 1.
        y: (n, k) centred responses.
        weight: (n,) of the data: as often they count in the sum.

    Returns:
        The heaviest first, and c.
    """
    views = {"plain": _rotated(x), "equal": _rotated(x * equalising(x, weight))}
    views["leading"] = views["plain"]
    plans = []
    for columns, trend in (("plain", 0.0), ("equal", 0.0), ("leading", 0.0), ("leading", _TREND)):
        family = [Plan(columns, length, trend) for length in ([] if trend else [0.0]) + [*LENGTHS]]
        evidence = [log_evidence(_in_view(plan, views[plan.columns], weight), y) for plan in family]
        plans += [family[k] for k in np.argsort(evidence)[::-1][:_BEST]]
    log_p = np.empty((len(SPREADS), len(plans), *y.shape))
    folds = np.array_split(np.random.default_rng(0).permutation(len(x)), _FOLDS)
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(x)), fold)
        for k, plan in enumerate(plans):
            log_p[:, k, fold] = _log_density(plan, views[plan.columns], y, weight, rest, fold)
    kept, weights, spreads = narrowed(log_p, weight)
    return [(float(weights[k]), build(plans[kept[k]], x, weight)) for k in np.argsort(-weights, kind="stable")], spreads


def narrowed(log_p: np.ndarray, weight: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray]:
    """(members, weights, spreads): of the best spread for all responses, then each response's best by itself.

    Args:
        log_p: [spread, kernel, datum, response].
        weight: of the data.
    """
    found = [elected(of_spread.sum(axis=2), weight) for of_spread in log_p]
    best = int(np.argmax([total for *_, total in found]))
    kept, weights, _ = found[best]
    mine, spreads = log_p[:, kept], np.full(log_p.shape[3], best)
    total, log_w = mine[best].sum(axis=2), np.log(weights)[None, :, None]
    for k in range(len(spreads)):
        tried = total[None] + mine[:, :, :, k] - mine[best, :, :, k][None]
        spreads[k] = np.argmax(np.logaddexp.reduce(log_w + tried, axis=1) @ weight)
        total = tried[spreads[k]]
    return kept, mixture_weights(total, weight), np.asarray(SPREADS)[spreads]


def elected(log_p: np.ndarray, weight: np.ndarray) -> tuple[list[int], np.ndarray, float]:
    """(members, weights, log density) of a mixture: one after another the one that raises it most, by half at least.

    Kernels that say the same are one member: each of them costs a draw of noise and a prediction.

    Args:
        log_p: [kernel, datum].
        weight: of the data.
    """
    kept = [int((log_p @ weight).argmax())]
    weights, total = np.ones(1), log_p[kept[0]] @ weight
    while len(kept) < len(log_p):
        trials = {k: mixture_weights(log_p[[*kept, k]], weight) for k in range(len(log_p)) if k not in kept}
        gained = {k: np.logaddexp.reduce(np.log(w)[:, None] + log_p[[*kept, k]]) @ weight for k, w in trials.items()}
        best = max(gained, key=lambda k: gained[k])
        if gained[best] < total + _WORTH:
            break
        kept, weights, total = [*kept, best], trials[best], gained[best]
    return kept, weights, float(total)


def mixture_weights(log_p: np.ndarray, weight: np.ndarray, steps: int = 100) -> np.ndarray:
    """Weights w (m,) of the mixture of highest `sum_i weight_i log sum_m w_m exp(log_p[m, i])`."""
    p = np.exp(log_p - log_p.max(axis=0)[None])
    weights = np.full(len(p), 1 / len(p))
    for _ in range(steps):
        share = weights[:, None] * p
        weights = np.maximum((share / share.sum(axis=0)[None]) @ (weight / weight.sum()), np.finfo(float).tiny)
    return weights / weights.sum()


def dealt(weights: list[float], total: int) -> list[list[Any]]:
    """For each weight some of sixteen random handfuls of `total` draws, as many as are nearest to its share."""
    if not weights:
        return []
    hands = np.array_split(np.random.default_rng(0).permutation(total), min(_HANDFULS, total))
    exact = np.asarray(weights) * len(hands)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: len(hands) - counts.sum()]] += 1
    ends = np.cumsum(counts)
    return [hands[end - count : end] for end, count in zip(ends, counts, strict=True)]


def noise_given(network: Network, seed: int, part: int, cores: Any, data: Centred) -> Any:
    """(precision, ratio) drawn given each draw of W [draw, ...]: of another kernel than W was drawn with."""
    numbers = noise_numbers(generator(seed, part), len(jax.tree.leaves(cores)[0]), data)
    return _noise_given(network, numbers, cores, data)


@partial(quick_jit, static_argnames="network")
def _noise_given(network: Network, numbers: Any, cores: Any, data: Centred) -> Any:
    def one(now):
        own, mine = now
        return pick_noise(mine, data.y - responses(network, own, data.x), data, 1.0)

    return jax.lax.map(one, (cores, numbers))


def _log_density(
    plan: Plan, x: np.ndarray, y: np.ndarray, weight: np.ndarray, rest: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """`log p(y_i | data of rest)` [spread, datum, response] of the data of a fold.

    A mixture over `RATIOS` of Gaussians, the noise at its mean given the ratio.
    """
    x_mean, y_mean = (np.average(a[rest], axis=0, weights=weight[rest]) for a in (x, y))
    n = weight[rest].sum()
    remainder = _in_view(plan, x[rest] - x_mean, weight[rest])
    kernel, own = remainder.at(x[fold] - x_mean)
    given, new = y[rest] - y_mean, y[fold] - y_mean
    log_p, energy, turned = of_ratios(remainder, given)
    log_p = log_p - np.logaddexp.reduce(log_p, axis=0)[None]
    total, squares = np.full((len(SPREADS), *new.shape), -np.inf), np.square(SPREADS)[:, None, None]
    for k in np.flatnonzero((log_p > -8).any(axis=1)):
        gain = RATIOS[k] / (1 + RATIOS[k] * remainder.spectrum)
        mean = kernel @ (gain[:, None] * turned)
        spread = 1 + 1 / n + np.maximum(RATIOS[k] * own - RATIOS[k] * (kernel**2 @ gain), 0)
        variance = squares * (spread[:, None] * (energy[k] / (n - 1))[None])[None]
        density = -0.5 * np.log(2 * np.pi * variance) - 0.5 * (new - mean)[None] ** 2 / variance
        total = np.logaddexp(total, log_p[k] + density)
    return total


def _in_view(plan: Plan, x: np.ndarray, weight: np.ndarray) -> Remainder:
    """A plan's kernel of covariates whose columns have their factors already."""
    return build(plan if plan.columns == "leading" else plan._replace(columns="plain"), x, weight)


def _rotated(x: np.ndarray) -> np.ndarray:
    """All principal components (n, r): inner products and distances stay, thousands of columns become r."""
    if x.shape[1] <= len(x):
        return x
    left, singular, _ = np.linalg.svd(x, full_matrices=False)
    return left * singular[None]
