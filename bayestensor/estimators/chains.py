"""Chains of a coefficient's draws: where they start, how they run, which indices they keep, whether they agree."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from bayestensor.models.coefficient import PORTION, Coefficient, CoefficientState
from bayestensor.ranks.select import host_slice_norms
from bayestensor.tensor.design import system_shape
from bayestensor.tensor.surgery import keep_axes

_WARM = 2**31  # portions of the warm-up are numbered from here: their numbers are their own
_MORE = 2**31 + 2**30, 2**31 + 2**30 + 2**29  # so are those of longer runs
_R_HAT = 1.05  # above this chains have not come together
_STRIDES = 2, 4  # sweeps to a draw where they have not
_DEAR = 256  # unknowns (or rows, whichever are fewer) of a core's equations above which indices that are dead are cut


def starts(model: Coefficient, chains: int, seed: int) -> CoefficientState:
    """A state for each chain [chain, ...]: cores drawn from the prior, every scale at 1."""
    rng, network = np.random.default_rng(seed), model.network
    shapes = {core.name: (chains, *network.core_shape(core.name)) for core in network.cores}
    cores: Any = {name: rng.normal(scale=model.variance**0.5, size=shape) for name, shape in shapes.items()}
    scales: Any = {bond: np.ones((chains, size)) for bond, size in network.ranks.items()}
    member: Any = {name: np.zeros(chains, int) for name in model.smooth}
    return CoefficientState(cores, scales, member)


def warmed_up(estimator: Any, sweeps: Any, seed: int, states: Any, alone: Any) -> tuple[Any, Any]:
    """(states, the last portion's [chain, sweep, ...] or None) after half of the burn-in without a remainder.

    Else the remainder takes what there is in the first sweeps, and the low rank finds nothing left to grow on.
    """
    draw, trace = 1.0 if estimator.inference == "gibbs" else 0.0, None
    for part in range(portions(estimator.burn_in // 2)):
        states, trace = sweeps(seed, _WARM + part, states, alone, draw)
    return states, trace


def is_dear(model: Coefficient, count: int) -> bool:
    """Whether a sweep for `count` data and their responses solves large systems: a smaller rank is then far cheaper."""
    network = model.network
    numbers = count * math.prod(network.size[leg] for leg in network.cols)
    shapes = [system_shape(network, core.name) for core in network.cores]
    return max(min(q * p, numbers // b) for b, q, p in shapes) > _DEAR


def pruned(
    model: Coefficient, states: CoefficientState, counted: Mapping[str, Any]
) -> tuple[Coefficient, CoefficientState]:
    """Model and states with the heaviest indices of each bond: the most that a draw counted, and one to spare.

    Args:
        model: the prior of W; that of the scales, and the variance of the cores, stay.
        states: of the chains.
        counted: bond -> which indices counted [draw, r].
    """
    network, cut = model.network, []
    sizes = {b: min(network.size[b], int(np.asarray(w).sum(axis=1).max()) + 1) for b, w in counted.items()}
    for chain in range(len(next(iter(states.cores.values())))):
        cores = {name: np.asarray(core[chain]) for name, core in states.cores.items()}
        norms, _ = host_slice_norms(network, cores)
        heaviest = {bond: np.sort(np.argsort(-norms[bond], kind="stable")[:size]) for bond, size in sizes.items()}
        cores = {c.name: np.asarray(keep_axes(c.legs, heaviest)(cores[c.name])) for c in network.cores}
        cut.append((cores, {bond: np.asarray(states.scales[bond][chain])[at] for bond, at in heaviest.items()}))
    cores, scales = jax.tree.map(lambda *a: np.stack(a), *cut)
    return replace(model, network=network.resized(sizes)), CoefficientState(cores, scales, states.member)


def portions(sweeps: int) -> int:
    """Calls that so many sweeps take."""
    return -(-sweeps // PORTION)


def run_chains(
    estimator: Any, sweeps: Any, seed: int, states: Any, data: Any, burn_in: int, draws: int, first: int = 0
) -> Any:
    """Burn in and draw, a portion of sweeps a call: the kept states [chain, draw, ...] as NumPy arrays.

    Portions are numbered from `first`, for numbers of their own. Of a mode the last state alone is kept.

    Raises:
        FloatingPointError: a state that is not finite.
    """
    gibbs = estimator.inference == "gibbs"
    kept = draws if gibbs else 1
    needed = portions(burn_in + kept)
    traces = []
    for part in range(needed):
        states, trace = sweeps(seed, first + part, states, data, 1.0 if gibbs else 0.0)
        if (needed - part - 1) * PORTION < kept:
            traces.append(jax.tree.map(np.asarray, trace))
    trace = jax.tree.map(lambda *a: np.concatenate(a, axis=1)[:, -kept:], *traces)
    if not all(np.isfinite(a).all() for a in jax.tree.leaves(trace)):
        raise FloatingPointError("the fit is not finite: look for extreme covariates, or choose a smaller max_rank")
    return trace


def split_r_hat(values: np.ndarray) -> float:
    """`sqrt((h - 1) / h + B / W)` of chains cut into halves of h draws, the variances summed over entries.

    B is the variance of the halves' means, W the mean of their variances (Gelman et al., Bayesian Data Analysis, 2013,
    section 11.4). Summed, it is about all predictions at once: the largest of hundreds would cry wolf.

    Args:
        values: [chain, draw, ...].
    """
    h = values.shape[1] // 2
    halves = values[:, values.shape[1] - 2 * h :].reshape(2 * len(values), h, -1)
    within, between = halves.var(axis=1, ddof=1).mean(axis=0).sum(), halves.mean(axis=1).var(axis=0, ddof=1).sum()
    return float(np.sqrt((h - 1) / h + between / within)) if within > 0 else 1.0


def agreed(
    estimator: Any, more: Callable[[Any, int, int], Any], trace: Any, describe: Callable[[Any], tuple[Any, Any]]
) -> tuple[Any, Any, dict[str, float]]:
    """(states [chain, draw, ...], what is said of them, R-hat of each functional): chains run on until they agree.

    Where they do not, twice as many sweeps follow, of which every second is kept, or four times as many, of which every
    fourth is; those before are burn-in. No R-hat of one chain or of no draws. Warns where chains still disagree.

    Args:
        estimator: with its parameters.
        more: (states, draws, number of the first portion) -> states [chain, draw, ...] after these.
        trace: states [chain, draw, ...] so far.
        describe: states -> (anything, name -> functional [chain, draw, ...]).
    """
    said, functionals = describe(trace)
    if estimator.inference != "gibbs" or estimator.chains < 2 or estimator.num_draws < 4:
        return trace, said, {}
    found = {name: split_r_hat(np.asarray(values)) for name, values in functionals.items()}
    for stride, first in zip(_STRIDES, _MORE, strict=True):
        if max(found.values()) <= _R_HAT:
            break
        last = jax.tree.map(lambda a: a[:, -1], trace)
        trace = more(last, estimator.num_draws * stride, first)
        trace = jax.tree.map(lambda a, stride=stride: a[:, stride - 1 :: stride], trace)
        said, functionals = describe(trace)
        found = {name: split_r_hat(np.asarray(values)) for name, values in functionals.items()}
    high = ", ".join(f"{name} {r:.2f}" for name, r in found.items() if r > _R_HAT)
    if high:
        advice = "the chains disagree about what they say; raise burn_in and num_draws"
        warnings.warn(f"R-hat is above {_R_HAT} ({high}): {advice}", ConvergenceWarning, stacklevel=4)
    return trace, said, found
